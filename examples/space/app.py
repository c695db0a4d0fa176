"""The Space: upload a picture, type class names, and see where each of them is. `python app.py` runs it locally."""

import html
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image
from segmenting import load_all, read_models, segment_picture

try:  # On ZeroGPU, a function that is marked so has a GPU while it runs, in a process that starts from this one.
    from spaces import GPU
except ImportError:
    GPU = None

PICTURES = Path(__file__).parent / "pictures"
EXAMPLES = [
    [str(PICTURES / "scene_1.png"), "boat, pear, kite, sky, road, cat"],
    [str(PICTURES / "scene_2.png"), "tree, owl, bell, brick, gravel, cake"],
    [str(PICTURES / "scene_3.png"), "cactus, bottle, guitar, night, wood, apple"],
]
MODELS = read_models()


def segment(
    path: str | None, labels: str, model: str, threshold: float, refine: bool
) -> tuple[Image.Image, dict[str, Any], Image.Image, list[tuple[str, str, str]], dict[str, Any]]:
    """Segment a picture; errors in the input are shown on the page."""
    try:
        result = segment_picture(path, labels, model, MODELS, threshold, refine)
    except (ValueError, OSError) as error:
        # Gradio shows messages as HTML, and they quote what the user typed.
        raise gr.Error(html.escape(str(error)), print_exception=False) from error
    alone, warning = (
        gr.update(value=value, visible=value is not None) for value in (result.training_free, result.warning)
    )
    return result.overlay, alone, result.mask, result.rows, warning


if GPU is not None:
    load_all(MODELS)
    segment = GPU(segment)


def path_of(upload: ImageData | None) -> str | None:
    """Return the path of an uploaded picture without reading it."""
    return None if upload is None else upload.path


# Uploads and results are deleted after an hour or two.
with gr.Blocks(title="zegclip", analytics_enabled=False, delete_cache=(3600, 3600)) as demo:
    gr.Markdown(
        "# zegclip: zero-shot semantic segmentation\n"
        "Give a picture and any class names; every pixel goes to the name that fits it best."
    )
    with gr.Row():
        with gr.Column(scale=2):
            picture = gr.Image(type="filepath", image_mode=None, sources=["upload"], label="Picture", height=260)
            labels = gr.Textbox(label="Class names, with commas between them", placeholder="house, tree, sky")
            model = gr.Dropdown(list(MODELS), label="Model")
            threshold = gr.Slider(0, 1, value=0, step=0.05, label="Threshold: pixels with a lower score get no name")
            refine = gr.Checkbox(label="Follow the outlines in the picture; takes longer")
            button = gr.Button("Segment", variant="primary")
            # A text box shows plain text, whatever the user has typed.
            warning = gr.Textbox(label="Warning", interactive=False, visible=False, elem_id="warning")
        with gr.Column(scale=3):
            overlay = gr.Image(
                label="Segmentation", format="png", height=420, buttons=["download", "fullscreen"], elem_id="overlay"
            )
            alone = gr.Image(
                label="The same CLIP without training",
                format="png",
                height=420,
                buttons=["download", "fullscreen"],
                visible=False,
                elem_id="training_free",
            )
            mask = gr.Image(
                label="Mask: the number of the name of each pixel, 255 for none",
                format="png",
                image_mode=None,
                height=200,
                buttons=["download"],
                elem_id="mask",
            )
            table = gr.Dataframe(
                headers=["name", "share of pixels", "mean score"],
                datatype="str",
                column_widths=["50%", "25%", "25%"],
                label="Names",
                interactive=False,
                elem_id="table",
            )
    # Gradio's own preprocessing opens the picture, and fails with a traceback on a broken one.
    picture.preprocess = path_of
    gr.Examples(EXAMPLES, inputs=[picture, labels])
    inputs = [picture, labels, model, threshold, refine]
    gr.on([button.click, labels.submit], segment, inputs, [overlay, alone, mask, table, warning])

if __name__ == "__main__":
    demo.launch()
