"""Reading micrographs: every format and unit, every warning, every refusal; the files are made here."""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import h5py
import matplotlib
import numpy as np
import pytest
import tifffile
from conftest import generator
from PIL import Image as Pillow
from scipy import ndimage

from bayesatoms.errors import InputError
from bayesatoms.imaging.formats import SUFFIXES
from bayesatoms.imaging.read import calibrate, read_image, read_images


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    """Poisson counts of columns on a square lattice: raw, unclipped, white noise."""
    y, x = np.mgrid[:64, :80]
    rate = 400 + 300 * (np.cos(2 * np.pi * x / 10) + np.cos(2 * np.pi * y / 10)) / 2
    return generator("counts").poisson(rate).astype(np.uint16)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A picture drawn by matplotlib with axes, title and colour bar: viridis, grey, and without axes."""
    from matplotlib.figure import Figure

    folder = tmp_path_factory.mktemp("figures")
    picture = ndimage.gaussian_filter(generator("rendered").uniform(size=(120, 150)), 2)
    picture[40:70, 50:90] = picture.min()  # a hole
    for name, style in {"viridis": {}, "grey": {"cmap": "gray"}, "bare": {"cmap": "gray"}}.items():
        figure = Figure(figsize=(6.4, 4.8))
        axes = figure.add_subplot()
        shown = axes.imshow(picture, interpolation="nearest", **style)
        if name == "bare":
            axes.set_axis_off()
        else:
            axes.set(title="HAADF", xlabel="x (nm)")
            figure.colorbar(shown)
        figure.savefig(folder / f"{name}.png", transparent=name == "viridis")
    return SimpleNamespace(folder=folder, picture=picture)


def warned(image, *words: str) -> None:
    """The warnings are these, in this order, and no others."""
    assert len(image.warnings) == len(words), image.warnings
    for text, word in zip(image.warnings, words, strict=True):
        assert word in text


# ---------------------------------------------------------------------- TIFF and its scales

NM = {"imagej": True, "resolution": (50, 50), "metadata": {"unit": "nm"}}
SCALES = {
    "ImageJ nm": (NM, 0.02),
    "ImageJ micron": ({**NM, "resolution": (50000, 50000), "metadata": {"unit": "micron"}}, 0.02),
    "ImageJ µm, escaped": ({**NM, "resolution": (50000, 50000), "metadata": {"unit": "\\u00B5m"}}, 0.02),
    "ImageJ pm": ({**NM, "resolution": (0.05, 0.05), "metadata": {"unit": "pm"}}, 0.02),
    "ImageJ pixel": ({**NM, "metadata": {"unit": "pixel"}}, None),
    "centimetres": ({"resolution": (5e8, 5e8), "resolutionunit": "CENTIMETER"}, 0.02),
    "inches": ({"resolution": (1.27e9, 1.27e9), "resolutionunit": "INCH"}, 0.02),
    "72 dpi": ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
    "96 dpi": ({"resolution": (96, 96), "resolutionunit": "INCH"}, None),
    "300 dpi, not square": ({"resolution": (300, 72), "resolutionunit": "INCH"}, None),
    "118 dots a cm": ({"resolution": (118, 118), "resolutionunit": "CENTIMETER"}, None),
    "one": ({"resolution": (1, 1)}, None),
    "nothing": ({}, None),
    "OME": ({"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 2e-5, "PhysicalSizeY": 2e-5}}, 0.02),
    "OME Å": (
        {"ome": True, "metadata": {"PhysicalSizeX": 0.2, "PhysicalSizeXUnit": "Å", "PhysicalSizeY": 0.2, "PhysicalSizeYUnit": "Å"}},
        0.02,
    ),
    "Gatan": ({"extratags": [(65003, 2, 3, "nm"), (65004, 2, 3, "nm"), (65009, 12, 1, 0.02), (65010, 12, 1, 0.02)]}, 0.02),
}


@pytest.mark.parametrize("name", SCALES)
def test_the_pixel_size_of_a_tiff(name, counts, tmp_path):
    how, expected = SCALES[name]
    path = tmp_path / ("a.ome.tif" if "OME" in name else "a.tif")
    tifffile.imwrite(path, counts, **how)
    image = read_image(path)
    assert image.pixel_size == (expected and pytest.approx(expected, rel=1e-6))
    assert np.array_equal(image.data, counts)
    warned(image)


def test_units_have_many_spellings():
    for unit, size in {
        "m": 1e9,
        "cm": 1e7,
        "inch": 2.54e7,
        "µm": 1e3,
        "μm": 1e3,
        "um": 1e3,
        "nm": 1,
        "Å": 0.1,
        "\u212b": 0.1,
        "A": 0.1,
    }.items():
        small = 0.02 / size
        assert calibrate(((small, unit), (small, unit))) == (pytest.approx(0.02), None)
        assert calibrate(((small, f"{unit}/px"), (small, f"{unit} / pixel"))) == (pytest.approx(0.02), None)
    for unit in ("", "px", "pixels", "1/px", "<undefined>", "None"):
        assert calibrate(((1.0, unit), (1.0, unit))) == (None, None)
    assert calibrate(((0.0093, ""), (0.0093, "")))[1].startswith("the header has a scale of 0.0093 but no unit")
    assert calibrate(((2.0, "eV"), (2.0, "eV")))[1].startswith("the header's unit 'ev' is no known length")


BAD_SCALES = {
    "r'nm' along x and 'pm' along y; expected one unit": ((0.02, "pm"), (0.02, "nm")),
    "'nm' along x and 'no unit' along y": ((0.02, ""), (0.02, "nm")),
    "pixels of 0.02 x 0.0204 nm; expected square ones": ((0.0204, "nm"), (0.02, "nm")),
    "pixels of -0.02 x -0.02 nm; expected positive numbers": ((-0.02, "nm"), (-0.02, "nm")),
    "pixels of nan x 0.02 nm; expected positive": ((0.02, "nm"), (float("nan"), "nm")),
    "pixels of 0 x 0 nm; expected positive": ((0, "nm"), (0, "nm")),
    "'1/nm': a diffraction pattern": ((0.02, "1/nm"), (0.02, "1/nm")),
}


@pytest.mark.parametrize("message", BAD_SCALES)
def test_scales_that_are_refused(message):
    with pytest.raises(InputError, match=message.removeprefix("r")):
        calibrate(BAD_SCALES[message])
    assert calibrate(((0.0201, "nm"), (0.02, "nm")))[0] == pytest.approx(0.02005, abs=1e-6)


def test_a_given_pixel_size_stands_above_the_header(counts, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", counts, **NM)
    image = read_image(tmp_path / "a.tif", pixel_size=0.0201)
    assert (image.pixel_size, image.source["pixel_size_header"]) == (0.0201, 0.02)
    warned(image)
    warned(read_image(tmp_path / "a.tif", pixel_size=0.025), "pixel_size=0.025 nm used, though the header says 0.02 nm (+25 %)")
    tifffile.imwrite(tmp_path / "b.tif", counts, **{**NM, "resolution": (50, 40)})
    with pytest.raises(InputError, match=r"b.tif: .*0.02 x 0.025 nm; expected square ones.*; if the header is wrong, give pixel_size"):
        read_image(tmp_path / "b.tif")
    warned(read_image(tmp_path / "b.tif", pixel_size=0.02), "pixel_size=0.02 nm used instead")


@pytest.mark.parametrize("size", [-0.02, 0, float("nan"), float("inf"), "0.02"])
def test_a_pixel_size_is_a_positive_number(size, counts, tmp_path):
    np.save(tmp_path / "a.npy", counts)
    with pytest.raises(InputError, match=r"a.npy: pixel_size=.*; expected a positive number of nm"):
        read_image(tmp_path / "a.npy", pixel_size=size)


# ---------------------------------------------------------------------- formats


def test_the_source_says_where_an_image_came_from(counts, tmp_path):
    path = tmp_path / "alloy.tif"
    tifffile.imwrite(path, counts, **NM)
    image = read_image(path, name="first")
    expected = {"file": "alloy.tif", "format": "TIFF", "channel": "series 0", "frame": 0, "frames": 1, "pixel_size_header": 0.02}
    expected |= {"shape": [64, 80], "dtype": "uint16", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert (image.name, image.source) == ("first", expected)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "uint32", "float16", "float32", "float64"])
def test_numbers_of_every_width(dtype, counts, tmp_path):
    values = counts.astype(dtype)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", values)
    tifffile.imwrite(tmp_path / "a.tif", values)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["values"] = values
    for suffix in ("npy", "npz", "tif", "h5"):
        image = read_image(tmp_path / f"a.{suffix}")
        assert np.array_equal(image.data, values) and image.source["dtype"] == dtype
        warned(image)


def test_pictures_of_8_and_16_bits(counts, tmp_path):
    byte = (counts / 5).astype(np.uint8)
    for suffix in ("png", "bmp", "tif", "gif"):
        Pillow.fromarray(byte).save(tmp_path / f"a.{suffix}")
        image = read_image(tmp_path / f"a.{suffix}")
        assert np.array_equal(image.data, byte)
        warned(image, "8 bit: 256 grey levels at most")
    Pillow.fromarray(counts).save(tmp_path / "b.png", dpi=(300, 300))
    assert np.array_equal(read_image(tmp_path / "b.png").data, counts) and read_image(tmp_path / "b.png").pixel_size is None
    Pillow.fromarray(byte).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").data - byte).mean() < 3


def test_gaps_stay_gaps(counts, tmp_path):
    values = np.where(np.arange(80) < 5, np.nan, counts)
    values[60, 60] = np.inf
    np.save(tmp_path / "a.npy", values)
    image = read_image(tmp_path / "a.npy")
    assert np.isnan(image.data[:, :5]).all() and np.isnan(image.data).sum() == 5 * 64 + 1
    warned(image, "1 infinite pixels")


def hyperspy(path: Path, data: np.ndarray, units: str = "nm", navigate: tuple[bool, ...] = (False, False)) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("Experiments/__unnamed__")
        group["data"] = data
        group["original_metadata/detector/map"] = np.ones((32, 32))
        for n, moves in enumerate(navigate):
            group.create_group(f"axis-{n}").attrs.update({"scale": 0.2, "units": units, "navigate": moves, "size": data.shape[n]})


def test_hdf5_of_hyperspy_and_others(counts, tmp_path):
    hyperspy(tmp_path / "a.hspy", counts, "Å")
    assert read_image(tmp_path / "a.hspy").pixel_size == 0.02
    assert read_image(tmp_path / "a.hspy").source["channel"] == "Experiments/__unnamed__/data"
    hyperspy(tmp_path / "s.hdf5", np.stack([counts, counts]), "Å", (True, False, False))
    assert [i.pixel_size for i in read_images(tmp_path / "s.hdf5")] == [0.02, 0.02]
    hyperspy(tmp_path / "b.hspy", np.ones((20, 20, 50)), "nm", (True, True, False))
    with pytest.raises(InputError, match=r"no data set of two or three dimensions; the file has .*data \(20, 20, 50\) float64"):
        read_image(tmp_path / "b.hspy")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["scan/data"] = counts
        for k, length in ((1, 64), (2, 80)):
            file[f"scan/dim{k}"] = np.arange(length) * 2e-11
            file[f"scan/dim{k}"].attrs["units"] = "[m]"
    assert read_image(tmp_path / "c.h5").pixel_size == pytest.approx(0.02)
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["volume"] = counts[None]
        file["volume"].attrs["element_size_um"] = (1.0, 2e-5, 2e-5)
    assert read_image(tmp_path / "d.h5").pixel_size == pytest.approx(0.02)


def nanonis(path: Path, planes: Mapping[str, tuple[np.ndarray, ...]], direction: str = "down", order: str = "MSBFIRST") -> None:
    """A scan as the controller writes it: lines in the order in which they were scanned, backward ones from the right."""
    rows, columns = next(iter(planes.values()))[0].shape
    table = [f"\t{n}\t{name}\tm\t{'both' if len(p) == 2 else 'forward'}\t1E-9\t0" for n, (name, p) in enumerate(planes.items())]
    lines = [":NANONIS_VERSION:", "2", ":SCANIT_TYPE:", f"   FLOAT   {order}", ":SCAN_PIXELS:", f"  {columns}  {rows}", ":SCAN_RANGE:"]
    lines += [
        f"  {columns * 2e-11:.4E}  {rows * 2e-11:.4E}",
        ":SCAN_DIR:",
        direction,
        ":COMMENT:",
        "bias: -1 V",
        "",
        ":Bias>Bias (V):",
        "1E+0",
    ]
    lines += [":DATA_INFO:", "\tChannel\tName\tUnit\tDirection\tCalibration\tOffset", *table, "", ":SCANIT_END:", "", ""]
    turned = [p[:: -1 if direction == "up" else 1, :: -1 if k else 1] for pair in planes.values() for k, p in enumerate(pair)]
    kind = ">f4" if order == "MSBFIRST" else "<f4"
    path.write_bytes("\n".join(lines).encode("latin-1") + b"\x1a\x04" + b"".join(np.ascontiguousarray(p, kind).tobytes() for p in turned))


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("order", ["MSBFIRST", "LSBFIRST"])
def test_nanonis_scans(direction, order, counts, tmp_path):
    z = counts.astype(np.float32)
    planes = {"Current": (z + 1,), "Z": (z, z + 2)}
    nanonis(tmp_path / "a.sxm", planes, direction, order)
    image = read_image(tmp_path / "a.sxm")
    assert np.array_equal(image.data, z) and image.pixel_size == pytest.approx(0.02) and image.source["channel"] == "Z forward"
    assert np.array_equal(read_image(tmp_path / "a.sxm", channel="Z backward").data, z + 2)
    assert np.array_equal(read_image(tmp_path / "a.sxm", channel="Current").data, z + 1)
    assert [i.name for i in read_images(tmp_path / "a.sxm")] == ["a"]
    with pytest.raises(InputError, match="channel 'LI' names none of the data sets; the file has 0: 'Z forward'"):
        read_image(tmp_path / "a.sxm", channel="LI")


def test_broken_nanonis_scans(counts, tmp_path):
    path = tmp_path / "a.sxm"
    nanonis(path, {"Z": (counts.astype(float),)})
    whole = path.read_bytes()
    for broken, message in {
        whole[:-100]: "20380 bytes of data; expected 20480 for 1 planes: truncated",
        whole[:200]: "no whole Nanonis scan",
        whole.replace(b"SCAN_RANGE", b"SCAN_WIDTH"): "header has no SCAN_RANGE",
        whole.replace(b"  80  64", b"  eighty"): "cannot be read as Nanonis scan",
    }.items():
        path.write_bytes(broken)
        with pytest.raises(InputError, match=message):
            read_image(path)


# ---------------------------------------------------------------------- the io extra


def dm3(data: np.ndarray, scale: float, unit: str) -> bytes:
    """The least file of Gatan's that holds an image: a tree of tags, names big-endian, values little-endian."""

    def value(name: str, code: int, form: str, x: float) -> bytes:
        return tag(name, 0x15) + b"%%%%" + struct.pack(">ii", 1, code) + struct.pack("<" + form, x)

    def array(name: str, code: int, raw: bytes, width: int) -> bytes:
        return tag(name, 0x15) + b"%%%%" + struct.pack(">4i", 3, 20, code, len(raw) // width) + raw

    def tag(name: str, kind: int) -> bytes:
        return struct.pack(">bh", kind, len(name)) + name.encode()

    def body(*tags: bytes) -> bytes:
        return struct.pack(">bbi", 1, 0, len(tags)) + b"".join(tags)

    def group(name: str, *tags: bytes) -> bytes:
        return tag(name, 0x14) + body(*tags)

    axis = [value("Origin", 6, "f", 0.0), value("Scale", 6, "f", scale), array("Units", 4, unit.encode("utf-16-le"), 2)]
    dimensions = group("Dimensions", value("", 5, "I", data.shape[1]), value("", 5, "I", data.shape[0]))
    calibrations = group(
        "Calibrations",
        group("Brightness", value("Origin", 6, "f", 0.0), value("Scale", 6, "f", 1.0), array("Units", 4, b"", 2)),
        group("Dimension", group("", *axis), group("", *axis)),
    )
    pixels = array("Data", 4, data.astype("<u2").tobytes(), 2)
    image = group("ImageData", calibrations, pixels, value("DataType", 5, "I", 10), dimensions, value("PixelDepth", 5, "I", 2))
    entry = group("", image, group("ImageTags"), array("Name", 4, "HAADF".encode("utf-16-le"), 2))
    root = body(group("ImageList", entry))
    return struct.pack(">3i", 3, len(root), 1) + root + bytes(8)


def mrc(data: np.ndarray, size: float) -> bytes:
    rows, columns = data.shape
    head = bytearray(1024)
    struct.pack_into("<4i", head, 0, columns, rows, 1, 6)
    struct.pack_into("<3i3f3f3i", head, 28, columns, rows, 1, columns * size, rows * size, size, 90, 90, 90, 1, 2, 3)
    head[208:216] = b"MAP \x44\x44\0\0"
    return bytes(head) + data.astype("<u2").tobytes()


def test_gatan_and_mrc_files(counts, tmp_path):
    pytest.importorskip("rsciio", reason="the io extra is not installed")
    (tmp_path / "a.dm3").write_bytes(dm3(counts, 20.0, "pm"))
    (tmp_path / "a.mrc").write_bytes(mrc(counts, 0.2))
    for suffix in ("dm3", "mrc"):
        image = read_image(tmp_path / f"a.{suffix}")
        assert np.array_equal(image.data, counts)
        assert image.pixel_size == pytest.approx(0.02)
        assert image.source["format"] == f"{suffix} (RosettaSciIO)"
    assert read_image(tmp_path / "a.dm3").source["channel"] == "HAADF"
    for suffix in ("dm3", "dm4", "emd", "mrc", "nxs"):
        (tmp_path / f"b.{suffix}").write_bytes((tmp_path / "a.dm3").read_bytes()[:60])
        with pytest.raises(InputError, match=rf"b.{suffix} cannot be read as {suffix} \(RosettaSciIO\).*is the file whole"):
            read_image(tmp_path / f"b.{suffix}")


@pytest.mark.parametrize(("module", "suffix"), [("emd", "emd"), ("nexus", "nxs"), ("ripple", "rpl")])
def test_files_that_rosettasciio_writes(module, suffix, counts, tmp_path):
    pytest.importorskip("rsciio", reason="the io extra is not installed")
    writer = pytest.importorskip(f"rsciio.{module}").file_writer
    common = {"offset": 0.0, "units": "nm", "navigate": False, "_type": "UniformDataAxis", "is_binned": False}
    axes = [{"name": n, "scale": 0.02, "size": counts.shape[k], "index_in_array": k, **common} for k, n in enumerate("yx")]
    metadata = {"General": {"title": "HAADF"}, "Signal": {"signal_type": ""}, "_HyperSpy": {}}
    about = {"package": "", "package_version": "", "attributes": {"_lazy": False}, "models": {}, "tmp_parameters": {}}
    path = tmp_path / f"a.{suffix}"
    writer(str(path), {"data": counts, "axes": axes, "metadata": metadata, "original_metadata": {}, "learning_results": {}, **about})
    image = read_image(path)
    assert np.array_equal(image.data, counts) and image.pixel_size == pytest.approx(0.02)


@pytest.mark.parametrize("suffix", [".dm3", ".dm4", ".emd", ".mrc", ".nxs"])
def test_an_absent_extra_names_itself_and_what_it_is_for(suffix, tmp_path, monkeypatch):
    for module in [m for m in sys.modules if m.partition(".")[0] == "rsciio"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "rsciio", None)
    (tmp_path / f"a{suffix}").write_bytes(b"anything")
    with pytest.raises(InputError, match=rf"reading {suffix} files needs RosettaSciIO, the io extra .*pip install bayesatoms\[io\]"):
        read_image(tmp_path / f"a{suffix}")


# ---------------------------------------------------------------------- frames, channels, several files


def test_frames_of_a_series(counts, tmp_path):
    stack = np.stack([counts, counts + 1, counts + 2])
    tifffile.imwrite(tmp_path / "s.tif", stack, imagej=True, resolution=(50, 50), metadata={"unit": "nm", "axes": "TYX"})
    np.save(tmp_path / "s.npy", stack)
    for path in (tmp_path / "s.tif", tmp_path / "s.npy"):
        assert [np.array_equal(read_image(path, frame=k).data, stack[k]) for k in (0, 1, -1)] == [True] * 3
        images = read_images(path)
        assert [i.name for i in images] == ["s_0", "s_1", "s_2"] and [i.source["frame"] for i in images] == [0, 1, 2]
        assert [i.name for i in read_images(path, frames=(0, 2))] == ["s_0", "s_2"]
        with pytest.raises(InputError, match=r"3 frames; choose frame=0 to 2 or frame='mean', or call read_images"):
            read_image(path)
        for frame in (3, -4, "middle", 0.5):
            with pytest.raises(InputError, match=rf"frame {frame!r} asked for; the file has 3, 0 to 2"):
                read_image(path, frame=frame)
    assert read_images(tmp_path / "s.tif")[0].pixel_size == 0.02


def test_the_mean_of_drifting_frames(tmp_path):
    """Truth: the drift is known, and the mean has the noise of as many frames; one lattice vector of drift is not skipped."""
    rng = generator("drift")
    y, x = np.mgrid[:168, :160]
    scene = (
        np.cos(2 * np.pi * x / 11) + np.cos(2 * np.pi * (x / 2 + y * 0.866) / 11) + ndimage.gaussian_filter(rng.normal(0, 3, y.shape), 2)
    )
    truth = np.cumsum(np.vstack([[0, 0], rng.uniform(-2.5, 2.5, (7, 2))]), axis=0)
    truth[:, 0] += np.arange(8)  # in all, further than half a lattice spacing
    frames = np.stack([ndimage.shift(scene, d, order=5)[20:-20, 20:-20] + rng.normal(0, 0.4, (128, 120)) for d in truth])
    np.save(tmp_path / "s.npy", frames)
    image = read_image(tmp_path / "s.npy", frame="mean")
    assert np.abs(np.array(image.source["drift"]) - truth).max() < 0.1
    low = np.ceil(-truth.min(axis=0) - 0.05).astype(int) + 20
    error = image.data - scene[low[0] : low[0] + image.shape[0], low[1] : low[1] + image.shape[1]]
    assert error[3:-3, 3:-3].std() < 1.2 * 0.4 / np.sqrt(8)
    warned(image, "mean of 8 frames aligned by up to")
    assert read_images(tmp_path / "s.npy", frames="mean")[0].name == "s"
    np.save(tmp_path / "apart.npy", np.stack([scene[k : k + 40, :40] for k in range(0, 128, 4)]))
    with pytest.raises(InputError, match="have no common part; choose frames that overlap"):
        read_image(tmp_path / "apart.npy", frame="mean")


def test_several_data_sets_in_one_file(counts, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["scan/haadf"], file["scan/bf"], file["note"], file["line"] = counts, counts + 1, "text", np.arange(5)
    np.savez(tmp_path / "a.npz", haadf=counts, bf=counts + 1, x=np.arange(3))
    tifffile.imwrite(tmp_path / "a.tif", counts)
    tifffile.imwrite(tmp_path / "a.tif", counts[:32] + 1, append=True)
    for suffix, channel in (("h5", "bf"), ("npz", "bf"), ("tif", "series 1")):
        path = tmp_path / f"a.{suffix}"
        with pytest.raises(InputError, match=r"2 data sets \(0: .*, 1: .*\); choose one with channel="):
            read_image(path)
        assert read_image(path, channel=channel).data[0, 0] == counts[0, 0] + (suffix != "h5" or 1)
        assert read_image(path, channel=1).shape[1] == 80
        assert len({i.name for i in read_images(path)}) == 2
        for wrong in ("eels", 2, -1):
            with pytest.raises(InputError, match=f"channel {wrong!r} names none of the data sets; the file has 0: "):
                read_image(path, channel=wrong)


def test_folders_and_lists(counts, tmp_path):
    for name in ("b.npy", "a.npy"):
        np.save(tmp_path / name, counts)
    (tmp_path / "notes.txt").write_text("no image")
    assert [i.name for i in read_images(tmp_path)] == ["a", "b"]
    assert [i.name for i in read_images([tmp_path / "b.npy", str(tmp_path / "a.npy")], pixel_size=0.02)] == ["b", "a"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no image; expected files of the kinds .bmp, .dm3"):
        read_images(tmp_path / "empty")
    with pytest.raises(InputError, match="no path given"):
        read_images([])


# ---------------------------------------------------------------------- what is wrong with a picture


def test_colour(counts, tmp_path):
    byte = (counts / 5).astype(np.uint8)
    for mode in ("RGB", "RGBA", "LA", "P"):
        Pillow.fromarray(byte).convert(mode).save(tmp_path / f"{mode}.png")
        assert np.array_equal(read_image(tmp_path / f"{mode}.png").data, byte)
        warned(read_image(tmp_path / f"{mode}.png"), "8 bit")
    photo = np.stack([byte, byte[::-1], byte[:, ::-1]], axis=-1)
    tifffile.imwrite(tmp_path / "photo.tif", photo, photometric="rgb")
    image = read_image(tmp_path / "photo.tif")
    warned(image, "8 bit", "a colour picture turned to grey by its luminance: intensities are no longer proportional")
    assert image.data == pytest.approx(photo @ [0.2126, 0.7152, 0.0722])
    mapped = (matplotlib.colormaps["viridis"](byte)[..., :3] * 255).astype(np.uint8)
    Pillow.fromarray(mapped).save(tmp_path / "map.png")
    warned(read_image(tmp_path / "map.png"), "8 bit", "a colour-mapped rendering (")


def test_clipping(counts, tmp_path):
    byte = np.clip(counts / 2.0, 0, 255).astype(np.uint8)
    share = 100 * np.mean(byte == 255)
    np.save(tmp_path / "byte.npy", byte)
    warned(read_image(tmp_path / "byte.npy"), "8 bit", f"clipped: {share:.1f} % of the pixels have the highest value, 255")
    np.save(tmp_path / "float.npy", np.clip(counts / 7.3, 30, 80))
    warned(read_image(tmp_path / "float.npy"), "have the highest value, 80;", "have the lowest value, 30;")
    few = counts.copy()
    few[0, :2] = 65535  # 0.04 %: two hot pixels
    np.save(tmp_path / "few.npy", few)
    warned(read_image(tmp_path / "few.npy"))


@pytest.mark.parametrize("width", [0.6, 0.8, 1.2, 2.0])
@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_smoothing_is_seen(width, kind, tmp_path):
    y, x = np.mgrid[:160, :160]
    raw = 100 + 40 * (np.cos(2 * np.pi * x / 9) + np.cos(2 * np.pi * y / 9)) / 2 + generator("smooth").normal(0, 15, y.shape)
    np.save(tmp_path / "raw.npy", raw.round().astype(kind))
    np.save(tmp_path / "smooth.npy", ndimage.gaussian_filter(raw, width).round(0 if kind == "uint8" else 9).astype(kind))
    byte = ["8 bit"] if kind == "uint8" else []
    warned(read_image(tmp_path / "raw.npy"), *byte)
    warned(read_image(tmp_path / "smooth.npy"), *byte, "already smoothed: the noise at the finest scale has")


def test_sparse_counts_are_not_smoothed(tmp_path):
    np.save(tmp_path / "dose.npy", generator("dose").poisson(0.1, (128, 128)).astype(np.uint16))
    warned(read_image(tmp_path / "dose.npy"), "have the lowest value, 0;")


@pytest.mark.parametrize("name", ["viridis", "grey", "bare"])
def test_the_picture_in_a_figure(name, rendered):
    path = rendered.folder / f"{name}.png"
    image = read_image(path)
    assert image.shape[1] / image.shape[0] == pytest.approx(150 / 120, abs=0.02)
    assert any("cropped out of a figure: rows" in w for w in image.warnings)
    assert any("colour" in w for w in image.warnings) == (name == "viridis")
    grown = ndimage.zoom(rendered.picture, np.array(image.shape) / rendered.picture.shape, order=0, grid_mode=True, mode="nearest")
    assert np.corrcoef(grown.ravel(), image.data.ravel())[0, 1] > 0.9  # nothing of the axes is left, nothing of the picture lost
    left = read_image(path, crop=False)
    assert left.shape == (480, 640) and "crop" not in left.source


def test_a_micrograph_is_no_figure(tmp_path):
    y, x = np.mgrid[:128, :128]
    island = np.where(np.hypot(x - 64, y - 64) < 45, 100 + 60 * np.cos(x / 2) * np.cos(y / 2), 0).astype(np.uint8)  # in vacuum
    atoms = np.clip(400 * np.cos(x / 3) * np.cos(y / 3) - 200, 0, 255).astype(np.uint8)  # on black
    for picture in (island, atoms):
        Pillow.fromarray(picture).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png").shape == (128, 128)


# ---------------------------------------------------------------------- refusals

REFUSED = {
    "constant": (np.ones((32, 32)), "every pixel is 1: the image is empty"),
    "all gaps": (np.full((32, 32), np.nan), "no pixel is a number"),
    "one pixel": (np.ones((1, 1)), r"shape \(1, 1\); expected a grey image of at least 16 x 16"),
    "a line": (np.arange(300.0), "without a two-dimensional image of real numbers"),
    "complex": (np.ones((32, 32)) * 1j, "without a two-dimensional image of real numbers"),
    "objects": (np.array([{}, None]), "holds Python objects; expected arrays of numbers"),
    "no frame": (np.ones((0, 32, 32)), "without a two-dimensional image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arrays_that_are_no_image(name, tmp_path):
    values, message = REFUSED[name]
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(InputError, match=message):
        read_image(tmp_path / "a.npy")


@pytest.mark.parametrize("keep", [0.5, 0.02, 5 / 2000])
@pytest.mark.parametrize("suffix", ["tif", "png", "jpg", "npy", "npz", "h5"])
def test_truncated_files(suffix, keep, counts, tmp_path, capfd):
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, counts)
    elif suffix == "npz":
        np.savez(path, counts)
    elif suffix == "h5":
        with h5py.File(path, "w") as file:
            file["a"] = counts
    else:
        Pillow.fromarray(counts if suffix != "jpg" else (counts / 5).astype(np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(InputError, match=rf"a.{suffix} (cannot be read as|ends before its pixels|is no plain NumPy)"):
        read_image(path)
    assert capfd.readouterr() == ("", "")


def test_files_that_are_not_there_or_of_no_known_kind(tmp_path):
    with pytest.raises(InputError, match=r"image .*a.tif cannot be read \(No such file or directory\)"):
        read_image(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"is a folder; expected an image file \(read_images takes folders\)"):
        read_image(tmp_path)
    with pytest.raises(InputError, match=r"suffix .xls is unknown; expected one of .bmp, .dm3, .dm4, .emd"):
        read_image(tmp_path / "a.xls")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"a.png is empty \(0 bytes\)"):
        read_image(tmp_path / "a.png")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["energy"], file["note"] = np.arange(3.0), "text"
    with pytest.raises(InputError, match=r"no data set of two or three dimensions; the file has energy \(3,\) float64"):
        read_image(tmp_path / "a.h5")
    assert {".tif", ".png", ".npy", ".h5", ".sxm", ".dm4"} <= set(SUFFIXES)


# ---------------------------------------------------------------------- real files


def test_real_figures_are_cropped(data):
    """The boxes were read off the pictures by eye; a pixel or two for the line around them."""
    for name, box in {
        "holes/MoS2_4.png": (58, 427, 108, 478),
        "holes/MoS2_kmr_doped.png": (58, 427, 108, 478),
        "v_wse2/notebook_raw.png": (22, 386, 35, 400),
    }.items():
        found = read_image(data / name).source["crop"]
        assert np.abs(np.array(found) - box).max() <= 2


def test_real_micrographs(data):
    sizes = {"janus_wsse/partial_3.tif": 1 / 128, "janus_wsse/partial_16.tif": 1 / 64, "mores2/re05.tif": None}
    smooth = {}
    for name, size in sizes.items():
        image = read_image(data / name)
        assert image.pixel_size == size and "crop" not in image.source
        smooth[name] = any("already smoothed" in w for w in image.warnings)
    assert smooth == {"janus_wsse/partial_3.tif": False, "janus_wsse/partial_16.tif": False, "mores2/re05.tif": True}
    assert any("0.10 % of the pixels have the highest value, 255" in w for w in image.warnings)
    warned(read_image(data / "se_mos2" / "se_mos2_survey_uint16.tif"))
    oxide = read_image(data / "perovskite_adf" / "test_ADF_cropped.hdf5")
    assert oxide.shape == (400, 380) and "scale of 0.009326 but no unit" in oxide.warnings[0]


def test_tiff_is_read_as_it_looks(tmp_path):
    """White at the least value, and palettes, are turned into what a viewer shows."""
    import tifffile

    picture = np.random.default_rng(0).integers(0, 256, (40, 50)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "white.tif", picture, photometric="miniswhite")
    assert np.array_equal(read_image(tmp_path / "white.tif").data, 255.0 - picture)
    ramp = np.arange(256, dtype=np.uint16)[::-1] * 257
    tifffile.imwrite(tmp_path / "palette.tif", picture, photometric="palette", colormap=np.stack([ramp] * 3))
    assert np.array_equal(read_image(tmp_path / "palette.tif").data, 255.0 - picture)
