"""Video: frames are those of the file, MA-Net is the published one, and its encoder hides what is masked."""

import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from cache.errors import UserError
from extract.config import VideoSettings
from extract.encoders.manet import VideoEncoder, load_published
from extract.encoders.manet_network import MultiAttentionNetwork, MultiScaleBlock, quadrants
from extract.encoders.registry import build_encoder, load_encoder, save_encoder
from extract.samples import DatasetInfo, ModalitySpec, SamplesTable
from extract.task import LabelSpec
from extract.values import UnreadableValue, Video, read_value

SPEC = ModalitySpec(name="face", kind="video", column="face_path")
SIZES = {"width": 8, "layers": 1, "heads": 2, "dropout": 0.0, "frames": 4, "image_size": 32, "base_channels": 4}


def settings(**changes: Any) -> VideoSettings:
    fields = {"type": "manet", "weights": "scratch", "reverse_second_chain": False, **SIZES, **changes}
    return VideoSettings.model_validate(fields)


def encoder(**changes: Any) -> VideoEncoder:
    torch.manual_seed(0)
    model = VideoEncoder(settings(**changes))
    for module in model.modules():  # as after training: statistics that are not those of a new batch norm
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def write_video(path: Path, levels: list[int], codec: str = "mpeg4", size: int = 48) -> Path:
    """A clip whose n-th frame has the grey level `levels[n]`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels_of(frames: list[Any]) -> list[float]:
    return [float(np.asarray(frame).mean()) for frame in frames]


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv"])
def test_frames_are_evenly_spaced_over_the_clip(tmp_path: Path, suffix: str) -> None:
    video = Video(write_video(tmp_path / f"a.{suffix}", list(range(0, 200, 10))))  # 20 frames
    found = levels_of(video.frames(4))  # the middles of four fifths: frames 2, 7, 12, 17
    assert np.allclose(found, [20, 70, 120, 170], atol=6)
    assert np.allclose(levels_of(video.frames(20)), range(0, 200, 10), atol=6)


def test_a_short_clip_has_as_many_tokens_as_frames(tmp_path: Path) -> None:
    video, model = Video(write_video(tmp_path / "a.mp4", [0, 100, 200])), encoder()
    item = model.preprocess(video)
    assert item["frames"].shape == (3, 32, 32, 3)
    assert model.length(item) == 3
    assert np.allclose(item["frames"].mean((1, 2, 3)), [0, 100, 200], atol=6)
    assert model.token_spans(video) == [(0.0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.0)]


def read(root: Path, cell: str) -> Any:
    info = DatasetInfo(name="x", label=LabelSpec(kind="binary", names=("y",)), modalities=(SPEC,))
    return read_value(SamplesTable(root, info, pd.DataFrame()), {"face_path": cell}, "face")


def test_a_table_s_video_is_read_and_damage_has_a_reason(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [10] * 9)
    assert len(read(tmp_path, "a.mp4").frames(16)) == 9
    (tmp_path / "text.mp4").write_bytes(b"no video " * 100)
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(UnreadableValue, match="decoded"):
        encoder().preprocess(read(tmp_path, "text.mp4"))
    with pytest.raises(UnreadableValue, match="no video stream"):
        encoder().preprocess(read(tmp_path, "sound.mkv"))
    with pytest.raises(UnreadableValue, match="not found"):
        read(tmp_path, "absent.mp4")


def test_the_network_has_the_published_size() -> None:
    network = MultiAttentionNetwork(64, reverse_second_chain=False)
    assert len(network.state_dict()) == 692 - 4  # the published files also hold two classifiers
    assert sum(p.numel() for p in network.parameters()) == 50_540_032
    with torch.no_grad():
        assert network.eval()(torch.rand(1, 3, 224, 224)).shape == (1, 1024)


def multi_scale_block(reverse: bool) -> MultiScaleBlock:
    """In evaluation; no two of its batch norms are alike, so that none can stand for another."""
    torch.manual_seed(0)
    block = MultiScaleBlock(8, 8, 1, reverse).eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_var, module.weight, module.bias):
                nn.init.uniform_(values, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
    return block


def normalised(state: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """BN(W * x) by definition, for the convolution and the batch norm of one name."""
    mean, var, scale, shift = (
        state[f"bn{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
    )
    convolved = nn.functional.conv2d(x, state[f"conv{name}.weight"], padding=1)
    return scale * (convolved - mean) / (var + 1e-5).sqrt() + shift


@pytest.mark.parametrize("reverse", [False, True])
def test_a_multi_scale_block_equals_its_equations(reverse: bool) -> None:
    """With x1..x4 the groups of relu(BN1(W1 x)), f{c}{g} the convolution and batch norm `{c}_2_{g}`:

    first chain y1 = f11(x1), yg = f1g(xg + relu(y(g-1))); second z1 = f21(x1), zg = f2g(xg + relu(z(g-1))), reversed
    z4 = f24(x4), zg = f2g(xg + relu(z(g+1))). The block is relu([y1 y2 y3 y4] + [z1 z2 z3 z4] + x), reversed or not.
    """
    block, x = multi_scale_block(reverse), torch.randn(2, 8, 5, 5)
    state = block.state_dict()
    x1, x2, x3, x4 = normalised(state, "1", x).relu().split(2, dim=1)
    y1 = normalised(state, "1_2_1", x1)
    y2 = normalised(state, "1_2_2", x2 + y1.relu())
    y3 = normalised(state, "1_2_3", x3 + y2.relu())
    y4 = normalised(state, "1_2_4", x4 + y3.relu())
    if reverse:
        z4 = normalised(state, "2_2_4", x4)
        z3 = normalised(state, "2_2_3", x3 + z4.relu())
        z2 = normalised(state, "2_2_2", x2 + z3.relu())
        z1 = normalised(state, "2_2_1", x1 + z2.relu())
    else:
        z1 = normalised(state, "2_2_1", x1)
        z2 = normalised(state, "2_2_2", x2 + z1.relu())
        z3 = normalised(state, "2_2_3", x3 + z2.relu())
        z4 = normalised(state, "2_2_4", x4 + z3.relu())
    expected = (torch.cat([y1, y2, y3, y4], 1) + torch.cat([z1, z2, z3, z4], 1) + x).relu()
    with torch.no_grad():
        assert torch.allclose(block(x), expected, atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_each_convolution_of_the_second_chain_reaches_its_own_group_and_those_after_it(reverse: bool) -> None:
    for group in (1, 2, 3, 4):
        block, x = multi_scale_block(reverse), torch.randn(2, 8, 5, 5)
        with torch.no_grad():
            before = block(x).split(2, dim=1)
            block.get_submodule(f"conv2_2_{group}").weight.zero_()  # type: ignore[union-attr,operator]
            after = block(x).split(2, dim=1)
        changed = [place for place in (1, 2, 3, 4) if not torch.equal(before[place - 1], after[place - 1])]
        assert changed == list(range(1, group + 1) if reverse else range(group, 5))


def test_each_quadrant_has_its_own_weights_and_regions_are_averaged() -> None:
    model = encoder().network
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert [q.flatten().tolist() for q in quadrants(x)] == [
        *([0, 1, 4, 5], [2, 3, 6, 7]),
        *([8, 9, 12, 13], [10, 11, 14, 15]),
    ]
    frames = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before = model(frames)
        for parameter in model.get_submodule("layer4_1_p2").parameters():
            parameter.zero_()
        after = model(frames)
    assert not torch.allclose(before[:, :32], after[:, :32])  # the local half
    assert torch.equal(before[:, 32:], after[:, 32:])


def clips(lengths: list[int], model: VideoEncoder) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    side = model.settings.image_size
    return [{"frames": rng.integers(0, 255, (n, side, side, 3), dtype=np.uint8)} for n in lengths]


def test_padding_and_batch_mates_change_nothing() -> None:
    model = encoder()
    items = clips([4, 1, 3], model)
    with torch.no_grad():
        together, embedded = model(model.collate(items))
        assert embedded.valid.sum(1).tolist() == [4, 1, 3]
        for row, item in enumerate(items):
            alone, _ = model(model.collate([item]))
            assert torch.allclose(together[row, : len(item["frames"])], alone[0], atol=1e-5)


def test_a_masked_frame_has_no_effect_and_gradients_reach_everything() -> None:
    model = encoder().train()
    items = clips([4, 4], model)
    embedded, mask = model.embed(model.collate(items)), torch.zeros(2, 4)
    mask[:, 1] = 1
    mask.requires_grad_()
    other = [{"frames": item["frames"].copy()} for item in items]
    for item in other:
        item["frames"][1] = 255 - item["frames"][1]
    hidden = model.encode_masked(embedded, mask)
    assert torch.allclose(hidden, model.encode_masked(model.embed(model.collate(other)), mask), atol=1e-5)
    assert not torch.allclose(hidden, model.encode(embedded), atol=1e-3)
    hidden.square().sum().backward()
    assert mask.grad is not None
    assert mask.grad.abs().sum() > 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert model.placeholder.grad.abs().sum() > 0  # type: ignore[union-attr]
    assert not any(m.training for m in model.network.modules() if isinstance(m, nn.BatchNorm2d))


def test_a_saved_encoder_gives_the_same_tokens(tmp_path: Path) -> None:
    model = encoder()
    save_encoder(model, tmp_path, {})
    batch = model.collate(clips([4, 2], model))
    with torch.no_grad():
        assert torch.equal(load_encoder(tmp_path)(batch)[0], model(batch)[0])


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file of the official code's layout: keys below `module.`, two classifiers, a record of its script's class."""

    class RecorderMeter:
        def __init__(self) -> None:
            self.epoch_losses = np.zeros((2, 2), np.float32)

    torch.manual_seed(1)
    state = {f"module.{k}": v for k, v in MultiAttentionNetwork(64, reverse_second_chain=False).state_dict().items()}
    for head in ("fc_1", "fc_2"):
        state |= {f"module.{head}.weight": torch.zeros(7, 512), f"module.{head}.bias": torch.zeros(7)}
    RecorderMeter.__module__, RecorderMeter.__qualname__ = "__main__", "RecorderMeter"
    main: ModuleType = sys.modules["__main__"]
    main.RecorderMeter = RecorderMeter  # type: ignore[attr-defined]
    content = {"epoch": 3, "state_dict": state, "best_acc": torch.tensor(0.5), "recorder": RecorderMeter()}
    torch.save(content, tmp_path / "x.pth.tar")
    del main.RecorderMeter  # type: ignore[attr-defined]
    return tmp_path / "x.pth.tar", state


def test_a_published_checkpoint_is_loaded_without_its_classes(published: Any) -> None:
    path, state = published
    assert not hasattr(sys.modules["__main__"], "RecorderMeter")
    built = build_encoder(settings(weights=str(path), image_size=224, base_channels=64), SPEC, list)
    for key, value in built.network.state_dict().items():  # type: ignore[union-attr,operator]
        assert torch.equal(value, state[f"module.{key}"]), key
    assert built.assets()["origin"]["unused_keys"] == ["fc_1.bias", "fc_1.weight", "fc_2.bias", "fc_2.weight"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    large = settings(image_size=224, base_channels=64)
    network = MultiAttentionNetwork(64, reverse_second_chain=False)
    torch.save({"state_dict": {"module.conv1.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04 torn")
    for name in ("other.pth", "torn.pth"):
        with pytest.raises(UserError, match="no checkpoint of MA-Net"):
            load_published(network, large.model_copy(update={"weights": str(tmp_path / name)}))
    with pytest.raises(UserError, match="There is no"):
        load_published(network, large.model_copy(update={"weights": str(tmp_path / "absent.pth")}))
    with pytest.raises(UserError, match="image_size 224"):
        load_published(network, settings(weights="x.pth"))
    with pytest.raises(UserError, match="multiple of 16"):
        VideoEncoder(settings(image_size=40))


@pytest.mark.slow
def test_a_real_size_clip() -> None:
    model = VideoEncoder(settings(width=768, heads=12, layers=2, frames=16, image_size=224, base_channels=64)).eval()
    with torch.no_grad():
        tokens, embedded = model(model.collate(clips([16], model)))
    assert tokens.shape == (1, 16, 768)
    assert embedded.valid.all()
