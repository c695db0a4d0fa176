"""Label maps as files, written byte by byte: Pillow writes only some of the kinds that it reads."""

import struct
import zlib

import numpy as np


def pack(row, bits, order=">"):
    """Numbers of a row as bytes, filled up to a whole one."""
    row = np.asarray(row)
    if bits in (16, 32):
        return row.astype(np.int64).astype(f"{order}u{bits // 8}").tobytes()
    digits = (row.astype(np.int64)[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(digits.astype(np.uint8).ravel()).tobytes()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(ids, bits, kind="grey", interlaced=False, transparent=False):
    """`kind`: grey or palette."""
    height, width = ids.shape
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [ids[y::dy, x::dx] for y, x, dy, dx in passes] if interlaced else [ids]
    rows = b"".join(b"\0" + pack(row, bits) for part in parts if part.size for row in part)
    head = struct.pack(">IIBBBBB", width, height, bits, 3 if kind == "palette" else 0, 0, 0, interlaced)
    extra = b""
    if kind == "palette":
        extra += chunk(b"PLTE", np.random.default_rng(1).integers(0, 256, 3 * 2**bits, dtype=np.uint8).tobytes())
    if transparent:
        extra += chunk(b"tRNS", bytes(range(min(2**bits, 256))) if kind == "palette" else struct.pack(">H", 1))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + body


def pack_codes(codes, bits, lowest_first):
    """Codes of one length as bytes."""
    digits = ((np.array(codes)[:, None] >> np.arange(bits)) & 1).astype(np.uint8)
    if lowest_first:
        return np.packbits(digits.ravel(), bitorder="little").tobytes()
    return np.packbits(digits[:, ::-1].ravel()).tobytes()


def lzw(data, bits, lowest_first):
    """LZW that clears its table before codes grow, so that each is a literal."""
    clear, codes = 2**bits, []
    for start in range(0, len(data), 2**bits - 3):
        codes += [clear, *data[start : start + 2**bits - 3]]
    return pack_codes([*codes, clear + 1], bits + 1, lowest_first)


def pack_bits(data):
    return b"".join(bytes([len(data[i : i + 128]) - 1]) + data[i : i + 128] for i in range(0, len(data), 128))


def tiff(
    ids, bits, kind="grey", order="<", signed=False, compression="raw", predictor=False, lowest_first=False, tile=None,
    planar=1, rows_per_strip=None, floats=False, orientation=None, extra_samples=0,
):  # fmt: skip
    """`kind`: grey, inverted or palette."""
    height, width = ids.shape
    if extra_samples:
        ids = np.repeat(ids[:, :, None], 1 + extra_samples, axis=2).reshape(height, -1)

    def encode(part):
        rows = []
        for row in part:
            if floats:
                rows.append(row.astype(f"{order}f4").tobytes())
                continue
            if predictor:
                row = np.diff(row.astype(np.int64), prepend=0) % 2**bits
            rows.append(pack(row, bits, order))
        data = b"".join(rows)
        if compression == "packbits":
            data = b"".join(pack_bits(row) for row in rows)
        if compression == "lzw":
            data = lzw(data, 8, False)
        if compression == "deflate":
            data = zlib.compress(data)
        if lowest_first:
            digits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
            data = np.packbits(digits, bitorder="little").tobytes()
        return data

    if tile:
        padded = np.zeros((-(-height // tile) * tile, -(-width // tile) * tile), ids.dtype)
        padded[:height, :width] = ids
        parts = [
            padded[y : y + tile, x : x + tile]
            for y in range(0, padded.shape[0], tile)
            for x in range(0, padded.shape[1], tile)
        ]
    else:
        rows_per_strip = rows_per_strip or height
        parts = [ids[y : y + rows_per_strip] for y in range(0, height, rows_per_strip)]
    blocks = [encode(part) for part in parts]
    samples = 1 + extra_samples
    tags = {
        256: [width], 257: [height], 258: [bits] * samples,
        259: [{"raw": 1, "lzw": 5, "deflate": 8, "packbits": 32773}[compression]],
        262: [{"inverted": 0, "grey": 1, "palette": 3}[kind]], 277: [samples], 284: [planar],
        339: [3 if floats else 2 if signed else 1] * samples,
    }  # fmt: skip
    if extra_samples:
        tags[338] = [0] * extra_samples
    if lowest_first:
        tags[266] = [2]
    if predictor:
        tags[317] = [2]
    if orientation:
        tags[274] = [orientation]
    if kind == "palette":
        tags[320] = np.random.default_rng(1).integers(0, 65536, 3 * 2**bits).tolist()
    offsets, counts = (324, 325) if tile else (273, 279)
    if tile:
        tags |= {322: [tile], 323: [tile]}
    else:
        tags[278] = [rows_per_strip]
    starts, place = [], 8
    for block in blocks:
        starts.append(place)
        place += len(block) + len(block) % 2
    tags |= {offsets: starts, counts: [len(block) for block in blocks]}
    entries, values = b"", b""
    end = place + 2 + 12 * len(tags) + 4
    for tag in sorted(tags):
        long = tag in (273, 279, 324, 325)
        content = struct.pack(f"{order}{len(tags[tag])}{'I' if long else 'H'}", *tags[tag])
        entries += struct.pack(f"{order}HHI", tag, 4 if long else 3, len(tags[tag]))
        if len(content) <= 4:
            entries += content.ljust(4, b"\0")
        else:
            entries += struct.pack(f"{order}I", end + len(values))
            values += content
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", place)
    pixels = b"".join(block + b"\0" * (len(block) % 2) for block in blocks)
    return head + pixels + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + values


def bmp(ids, bits, kind="grey", top_down=False, old_header=False, run_length=False, colours=None, stretched=False):
    """`kind`: grey, inverted or palette; `stretched`: grey values over the full range, not 0, 1, 2, ..."""
    height, width = ids.shape
    count = 2**bits if colours is None else colours
    greys = np.arange(count) * (255 // max(count - 1, 1) if stretched or count == 2 else 1)
    table = np.repeat(greys[:, None], 3, axis=1)
    if kind == "inverted":
        table = 255 - table if count == 256 or stretched or count == 2 else greys.max() - table
    if kind == "palette":
        table = np.random.default_rng(1).integers(0, 256, (count, 3))
    table = np.concatenate([table, np.zeros((count, 0 if old_header else 1), int)], axis=1).astype(np.uint8).tobytes()
    rows = ids if top_down else ids[::-1]
    if run_length:
        # A run for each pixel or pair of equal ones.
        pixels = b"".join(
            b"".join(bytes([1, int(v) << (8 - bits)]) for v in row) + b"\0\0" for row in rows
        ) + b"\0\1"  # fmt: skip
    else:
        pixels = b"".join((data := pack(row, bits)) + bytes(-len(data) % 4) for row in rows)
    if old_header:
        head = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        code = {8: 1, 4: 2}[bits] if run_length else 0
        sides = (width, -height if top_down else height)
        head = struct.pack("<IiiHHIIiiII", 40, *sides, 1, bits, code, len(pixels), 0, 0, colours or 0, 0)
    start = 14 + len(head) + len(table)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + head + table + pixels


def pgm(ids, largest, plain=False):
    """A grey map, or a bit map (in which 1 is black) for the largest value 1 and `largest=None`."""
    height, width = ids.shape
    bit_map = largest is None
    kind = {(False, False): 5, (False, True): 2, (True, False): 4, (True, True): 1}[bit_map, plain]
    head = f"P{kind}\n{width} {height}\n" + ("" if bit_map else f"{largest}\n")
    if plain:
        return head.encode() + "\n".join(" ".join(map(str, row)) for row in ids.tolist()).encode() + b"\n"
    bits = 1 if bit_map else 8 if largest < 256 else 16
    return head.encode() + b"".join(pack(row, bits) for row in ids)


def gif(ids, bits, kind="grey", interlaced=False, transparent=False, place=(0, 0), screen=None):
    height, width = ids.shape
    count = 2**bits
    table = np.repeat(np.arange(count)[:, None], 3, axis=1)
    if kind == "inverted":
        table = table[::-1]
    if kind == "palette":
        table = np.random.default_rng(1).integers(0, 256, (count, 3))
    screen = screen or (width, height)
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80 | (bits - 1), 0, 0) + table.astype(np.uint8).tobytes()
    if transparent:
        head += b"\x21\xf9\x04\x01\0\0\x01\0"
    rows = np.concatenate([ids[0::8], ids[4::8], ids[2::4], ids[1::2]]) if interlaced else ids
    code = max(bits, 2)
    data = lzw(rows.astype(np.uint8).ravel().tolist(), code, True)
    blocks = b"".join(bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255))
    frame = b"," + struct.pack("<HHHHB", *place, width, height, 0x40 if interlaced else 0)
    return head + frame + bytes([code]) + blocks + b"\0;"
