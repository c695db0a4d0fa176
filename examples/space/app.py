"""The Space: upload a picture, type class names, and see where each of them is. `python app.py` runs it locally."""

import html
from pathlib import Path

import gradio as gr
from PIL import Image
from segmenting import read_models, segment_picture

PICTURES = Path(__file__).parent / "pictures"
EXAMPLES = [
    [str(PICTURES / "scene_1.png"), "house, umbrella, clock, grass, night, boat"],
    [str(PICTURES / "scene_2.png"), "boat, fish, cup, brick, sky, cake"],
    [str(PICTURES / "scene_3.png"), "shirt, umbrella, cactus, night, road, apple"],
]
MODELS = read_models()


def segment(
    path: str | None, labels: str, model: str, threshold: float
) -> tuple[Image.Image, list[tuple[str, str, str]]]:
    """Segment a picture; what is wrong becomes one sentence on the page."""
    # Gradio shows messages as HTML, and they quote what the user has typed.
    try:
        result = segment_picture(path, labels, model, MODELS, threshold)
    except (ValueError, OSError) as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from error
    if result.warning is not None:
        gr.Warning(html.escape(result.warning), duration=None)
    return result.overlay, result.rows


# Uploads are kept for an hour at most.
with gr.Blocks(title="zegclip", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
    gr.Markdown(
        "# zegclip: zero-shot semantic segmentation\n"
        "Give a picture and any class names; every pixel goes to the name that fits it best."
    )
    with gr.Row():
        with gr.Column(scale=2):
            picture = gr.Image(type="filepath", image_mode=None, sources=["upload"], label="Picture", height=300)
            labels = gr.Textbox(label="Class names, with commas between them", placeholder="house, tree, sky")
            model = gr.Dropdown(list(MODELS), label="Model")
            threshold = gr.Slider(0, 1, value=0, step=0.05, label="Threshold: pixels with a lower score get no name")
            button = gr.Button("Segment", variant="primary")
        with gr.Column(scale=3):
            overlay = gr.Image(label="Segmentation", format="png", interactive=False)
            table = gr.Dataframe(
                headers=["name", "share of pixels", "mean score"], datatype="str", label="Names", interactive=False
            )
    gr.Examples(EXAMPLES, inputs=[picture, labels])
    gr.on([button.click, labels.submit], segment, [picture, labels, model, threshold], [overlay, table])

if __name__ == "__main__":
    demo.launch()
