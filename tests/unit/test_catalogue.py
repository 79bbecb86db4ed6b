"""The catalogue: its facts are those of the code."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from deeptransfer import catalogue, normalization, objectives
from deeptransfer.adversarial import SoftLabelLoss
from deeptransfer.domains import Batch
from deeptransfer.networks import small_cnn
from deeptransfer.normalization import DomainNorm, forward_domains

OBJECTIVES = [method.name for method in catalogue.objectives()]
NORMS = [method.name for method in catalogue.methods("normalization")]


def tiny():
    return small_cnn(widths=(4,), hidden=(8,), classes=3, size=8)


def batch(needs=(), seed=0):
    draw = torch.Generator().manual_seed(seed)

    def images():
        return torch.rand(6, 1, 8, 8, generator=draw)

    labels = torch.arange(6) % 3
    made = Batch(images(), labels, images())
    if catalogue.VIEWS in needs:
        made = replace(made, xt2=images())
    if catalogue.LABELLED in needs:
        made = replace(made, xl=images(), yl=labels)
    return made


def build(name, network, **settings):
    objective = catalogue.get(name).factory(network, 3, 0, **settings)
    for loss in (part for part in objective.modules() if isinstance(part, SoftLabelLoss)):
        loss.update(torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3)
    return objective


def test_names_are_unique_and_records_are_fixed():
    names = [method.name for method in catalogue.methods()]
    assert len(set(names)) == len(names)
    with pytest.raises(FrozenInstanceError):
        catalogue.get("dan").title = "another"


def test_labels_are_short_and_tell_the_methods_apart():
    labels = [catalogue.label(method.name) for method in catalogue.methods()]
    assert len(set(labels)) == len(labels)
    assert [catalogue.label(name) for name in ("source-only", "bn", "transnorm-uniform", "cdan+e · rn")] == [
        "Source only",
        "BatchNorm",
        "TransNorm with α = 1",
        "CDAN+E · RN",
    ]
    with pytest.raises(ValueError, match="unknown method 'tansnorm'"):
        catalogue.label("cdan+e · tansnorm")


@pytest.mark.parametrize("method", catalogue.methods(), ids=lambda method: method.name)
def test_every_fact_is_given_and_what_it_points_to_exists(method):
    assert all((method.title, method.paper, method.shift, method.cost, method.symbol))
    assert method.chapter is None or method.page in (catalogue.CHAPTERS[method.chapter], method.section)
    if method.section is not None:  # in the folder of its chapter
        assert method.section.rpartition("/")[0] == catalogue.CHAPTERS[method.chapter].rpartition("/")[0]
    assert callable(method.resolve())


def test_no_objective_and_no_normalisation_is_forgotten():
    listed = {method.resolve() for method in catalogue.methods()} | {objectives.Combined, objectives.DomainConfusion}
    written = {c for _, c in inspect.getmembers(objectives, inspect.isclass) if issubclass(c, objectives.Objective)}
    assert written <= listed
    families = {c for c in DomainNorm.__subclasses__() if c.__module__.startswith(normalization.__name__)}
    assert all(any(isinstance(m, type) and issubclass(m, family) for m in listed) for family in families)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_gives_finite_losses_whose_gradient_reaches_the_network(name):
    network = tiny()
    losses = build(name, network)(network, batch(catalogue.get(name).needs), 0.5)
    torch.stack(list(losses.values())).sum().backward()
    gradient = network.features.block1[0].weight.grad
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_method_reads_target_images_exactly_where_it_says_so(name):
    def losses(target_seed):
        network = tiny()
        needs = catalogue.get(name).needs
        made = replace(batch(needs), xt=torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(target_seed)))
        return [loss.item() for loss in build(name, network)(network, made, 0.5).values()]

    assert (losses(5) != losses(6)) == (catalogue.UNLABELLED in catalogue.get(name).needs)


@pytest.mark.parametrize("name", ["mec", "confusion+soft"])
def test_a_need_that_is_not_met_is_an_error(name):
    network = tiny()
    with pytest.raises(ValueError, match="DomainPair"):
        build(name, network)(network, batch(), 0.5)


def test_a_record_s_options_tell_the_variants_apart():
    network = tiny()
    assert not build("jan", network).maps
    assert [tuple(m.weight.shape) for m in build("jan-a", network).maps] == [(8, 8), (3, 3)]
    assert build("cdan", network).loss.weighting is None
    assert build("cdan+e", network).loss.weighting == "per-domain"


def test_settings_reach_the_objective_and_unknown_ones_are_listed():
    assert build("da-nn", tiny(), weight=0.25, layer="relu1").weight == 0.25
    with pytest.raises(ValueError, match=r"unknown setting 'wieght' of 'da-nn': known ones are weight, layer, sigma2"):
        build("da-nn", tiny(), wieght=1)
    with pytest.raises(ValueError, match="'in_features'"):  # a fact of the network, not a setting
        build("dann", tiny(), in_features=4)
    with pytest.raises(ValueError, match="no objective"):
        catalogue.get("rn").factory(tiny(), 3, 0)


@pytest.mark.parametrize("name", NORMS)
def test_normalisation_replaces_every_batchnorm_or_none(name):
    method, network = catalogue.get(name), tiny()
    assert method.convert(network) is network
    layers = [part for part in network.modules() if isinstance(part, DomainNorm)]
    assert len(layers) == (2 if method.has_layer else 0)
    for layer in layers:
        for option, value in method.options.items():
            assert getattr(layer, option) == value
    made = batch()
    assert all(torch.isfinite(out.logits).all() for out in forward_domains(network, made.xs, made.xt))


def test_settings_of_a_normalisation():
    network = catalogue.get("rn").convert(tiny(), temperature=0.5)
    assert network.features.block1[1].temperature == 0.5
    with pytest.raises(ValueError, match="no settings"):
        catalogue.get("bn").convert(tiny(), temperature=0.5)
    with pytest.raises(ValueError, match=r"'tent' is no normalisation.*no layer.*; normalisations are bn, .*whitening"):
        catalogue.get("tent").convert(tiny())


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown method 'dam': known ones are source-only, .*tent"):
        catalogue.get("dam")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("TransNorm", "transnorm"),
        ("transnrm", "transnorm"),
        ("TransNorm2d", "transnorm"),
        (normalization.TransNorm2d, "transnorm"),
        ("batchnorm", "bn"),
        ("reciprocal", "rn"),
        ("CDAN", "cdan"),
    ],
)
def test_misspelled_name_or_a_class_leads_to_the_name(given, meant):
    with pytest.raises(ValueError, match=rf"^unknown method .*; did you mean '{meant}'\?$"):
        catalogue.get(given)


def test_nothing_is_suggested_where_nothing_is_near():
    with pytest.raises(ValueError, match=r"unknown method None: known ones are .*, tent\b"):
        catalogue.get(None)
