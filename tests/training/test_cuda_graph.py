"""A pass over buffers of one shape gives the loss and the gradients of the batch alone."""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel, Trainer

from tests.training.conftest import Fitted, Train, packs, settings
from tometune.common.errors import UserError
from tometune.config.model import Precision
from tometune.models.packed_attention import Packed
from tometune.training import sft
from tometune.training.batches import Capacity, Training, split
from tometune.training.cuda_graph import PassGraph, can_use_graph, compiled_layers, graph_for, layers_of

SETTINGS = packs(96, 2) | {"max_steps": 4, "num_train_epochs": 9}


@pytest.fixture(scope="module")
def fitted(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return train(tmp_path_factory.mktemp("packs"), settings(**SETTINGS))


def with_lengths(batch: dict[str, Any], capacity: Capacity) -> dict[str, Any]:
    """Add what the collator adds for attentions over lengths, and for a graph."""
    starts = (batch["position_ids"][0] == 0).nonzero().flatten()
    end = torch.tensor([batch["input_ids"].numel()], device=starts.device)
    ends = torch.cat([starts, end]).to(torch.int32)
    return batch | {"cu_seq_lens_q": ends, "parts": split(ends.diff().tolist(), batch["labels"][0].cpu(), capacity)}


def gradients(fitted: Fitted) -> dict[str, torch.Tensor]:
    weights = fitted.trainer.model.named_parameters()
    return {name: weight.grad.clone() for name, weight in weights if weight.grad is not None}


def by_the_trainer(fitted: Fitted, batch: dict[str, Any], items: int) -> tuple[float, dict[str, torch.Tensor]]:
    fitted.trainer.model.zero_grad()
    loss = fitted.trainer.compute_loss(fitted.trainer.model, dict(batch), num_items_in_batch=torch.tensor(items))
    loss.backward()
    return loss.item(), gradients(fitted)


def same(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == theirs.keys() != set()
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-7)


def test_padding_changes_neither_loss_nor_gradients(fitted):
    items = int((fitted.batches[0]["labels"] != -100).sum())
    loss, expected = by_the_trainer(fitted, fitted.batches[0], items)
    for packs_, longest, capacity in (
        (2, 96, Capacity(30, 192)),
        (5, 60, Capacity(30, items)),  # three packs and more of padding alone
        (2, 96, Capacity(30, items - 1)),
        (3, 96, Capacity(1, 96)),
    ):
        graph = PassGraph(fitted.trainer.model, 96 * packs_, longest, capacity, capture=False)
        batch = with_lengths(fitted.batches[0], capacity)
        assert batch["input_ids"].numel() < graph.tokens
        fitted.trainer.model.zero_grad()
        assert float(graph(batch, items)) == pytest.approx(loss, abs=1e-6)
        same(gradients(fitted), expected)


def test_lengths_of_a_part_begin_at_nought_and_padding_fills_the_pass(fitted):
    """On a CPU the attention goes by position ids; these are what the kernel on a GPU goes by."""
    ids = torch.arange(1, 13)[None]
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2, 3, 0, 1, 2]])
    lengths = torch.tensor([0, 3, 5, 9, 12], dtype=torch.int32)
    labels = torch.where(positions == 0, -100, ids)
    batch = {"input_ids": ids, "position_ids": positions, "labels": labels, "cu_seq_lens_q": lengths}
    capacity = Capacity(2, 6)
    graph = PassGraph(fitted.trainer.model, 16, 4, capacity, capture=False)
    first, second = split([3, 2, 4, 3], labels[0], capacity)
    graph._fill(batch, first, 1)
    assert graph._ends.tolist() == [0, 3, 5, 9, 13, 16, 16]
    assert graph._labels[graph._labels != -100].tolist() == [2, 3, 5]
    graph._fill(batch, second, 1)
    assert graph._ends.tolist() == [0, 4, 7, 11, 15, 16, 16]
    assert graph._ids.tolist() == [[6, 7, 8, 9, 10, 11, 12] + [0] * 9]
    assert graph._positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 0]]
    assert graph._kept.tolist() == [0, 1, 2, 3, 4, 5]
    assert graph._labels.tolist() == [7, 8, 9, -100, 11, 12]


def test_what_a_graph_writes_is_added_up_over_a_step(fitted, monkeypatch):
    """A replay overwrites its gradients, in tensors that stay where they are."""
    capacity = Capacity(3, 96)
    first, second = (with_lengths(batch, capacity) for batch in fitted.batches[:2])
    assert len(first["parts"]) > 1
    graph = PassGraph(fitted.trainer.model, 192, 96, capacity, capture=False)
    expected = [by_the_trainer(fitted, batch, 50) for batch in fitted.batches[:2]]
    losses, (one, other) = zip(*expected, strict=True)

    def captured() -> Callable[[], None]:
        weights = graph.weights
        graph._gradients = [torch.full_like(weight, 99.0) for weight in weights]

        def replay() -> None:
            held = [weight.grad for weight in weights]
            for weight in weights:
                weight.grad = None
            graph._pass()
            for weight, gradient, before in zip(weights, graph._gradients, held, strict=True):
                gradient.copy_(weight.grad)
                weight.grad = before

        return replay

    monkeypatch.setattr(graph, "_captured", captured)
    graph.capture = True
    for _ in range(2):
        fitted.trainer.model.zero_grad()
        found = [float(graph(first, 50)), float(graph(second, torch.tensor(50)))]
        assert found == pytest.approx(losses, abs=1e-5)
        same(gradients(fitted), {name: one[name] + other[name] for name in one})


def test_several_processes_add_their_gradients_after_the_last_pass_of_a_step(fitted, monkeypatch):
    trainer, added = fitted.trainer, []
    capacity = Capacity(30, 192)
    graph = PassGraph(trainer.model, 192, 96, capacity, capture=False)
    monkeypatch.setattr("tometune.training.trainer.sum_gradients", added.append)
    monkeypatch.setattr(trainer, "graph", graph)
    monkeypatch.setattr(trainer.args, "distributed_state", SimpleNamespace(num_processes=2, device=trainer.args.device))
    assert trainer.args.world_size == 2
    batch, losses = with_lengths(fitted.batches[0], capacity), []
    alone = float(graph(batch, 50))
    for last in (False, True):
        monkeypatch.setattr(trainer.accelerator.gradient_state, "sync_gradients", last)
        losses.append(float(trainer.training_step(trainer.model, dict(batch), torch.tensor(50))))
        assert len(added) == last
    assert losses == pytest.approx([2 * alone] * 2), "the mean over processes, which transformers logs, is the sum"
    assert {weight.data_ptr() for weight in added[0]} == {weight.data_ptr() for weight in graph.weights}


@pytest.mark.parametrize(
    ("change", "needs"),
    [
        ({}, None),
        ({"dtype": torch.float16}, "model.precision=bf16, because fp16 scales its loss"),
        ({"full": True}, r"a LoRA adapter \(lora=default\)"),
        ({"packed": Packed.positions}, "attention over lengths"),
        ({"unsloth": True}, "model.backend=transformers"),
        ({"loss_type": "dft"}, "trainer.loss_type=chunked_nll or nll"),
    ],
)
def test_what_a_graph_needs(change, needs):
    decoder = SimpleNamespace(get_decoder=lambda: SimpleNamespace(layers=[1]))
    model = SimpleNamespace(device=torch.device("cuda"), num_parameters=lambda: 1, get_base_model=lambda: decoder)
    config = settings(**SETTINGS, cuda_graph=True, loss_type=change.get("loss_type", "nll"))
    inputs = SimpleNamespace(trainer=config.trainer, source=SimpleNamespace(config=config.model))
    met = {"dtype": torch.bfloat16, "full": False, "packed": Packed.lengths, "unsloth": False}
    training: Any = SimpleNamespace(model=model, inputs=inputs, **met | change)
    if needs is None:
        assert can_use_graph(training)
        return
    with pytest.raises(UserError, match=f"cuda_graph=true: needs {needs}"):
        can_use_graph(training)


def test_a_pass_has_room_for_nearly_every_batch():
    rows = Dataset.from_dict(
        {
            "labels": [[-100] * (1000 - 10 * n) + [1] * (24 + 10 * n) for n in range(100)],
            "seq_lengths": [[n + 300, *[1] * (n % 20), 724 - n - n % 20] for n in range(100)],
        }
    )
    training = SimpleNamespace(rows=rows, inputs=settings(**packs(1024, 8)), model=torch.nn.Linear(2, 2))
    training.model.device, training.attention = torch.device("cpu"), "flex"
    graph = graph_for(training, 8)  # type: ignore[arg-type]
    assert (graph.tokens, graph.longest) == (8192, 724)
    assert graph.mask is graph_for(training, 8).mask, "layers are compiled for one mask"  # type: ignore[arg-type]
    assert graph.capacity.trained == 6656, "of 8,192 tokens"
    torch.manual_seed(0)
    drawn = torch.randint(100, (20_000, 8))
    assert float((drawn.mul(10).add(24).sum(dim=1) > graph.capacity.trained).float().mean()) < 3e-3
    assert float((drawn.remainder(20).add(2).sum(dim=1) > graph.capacity.conversations).float().mean()) < 3e-3
    assert graph.capacity.conversations < 8 * 21
    assert graph_for(training, 1).capacity.trained == 1024  # type: ignore[arg-type]


def test_layers_are_compiled_only_while_they_train(fitted):
    layers = layers_of(fitted.trainer.model)
    assert len(layers) == 2
    with compiled_layers(fitted.trainer.model):
        assert all(layer._compiled_call_impl for layer in layers)
    assert not any(layer._compiled_call_impl for layer in layers)


def test_steps_around_a_pass_train_alike_and_do_not_go_through_the_model(train, tmp_path, monkeypatch):
    """A graph of a small model is over before Python has visited all its modules a few times."""
    config = settings(**packs(96, 4) | {"max_steps": 4, "num_train_epochs": 9, "micro_batch": 2})
    expected = train(tmp_path / "without", config)
    inner, visits, passes = Trainer._run_epoch, list[str](), list[bool]()
    post_init, named_modules = Training.__post_init__, torch.nn.Module.named_modules

    def by_lengths(training: Training) -> None:
        post_init(training)
        training.packed = Packed.lengths

    def passes_of(training: Training, rows: int) -> PassGraph:
        graph = PassGraph(training.model, 96 * rows, 96, Capacity(40, 96 * rows), capture=False)
        run = graph._pass

        def watched() -> None:
            passes.append(layers_of(training.model)[0].mlp.training)  # in the base model
            run()

        graph._pass = watched  # type: ignore[method-assign]
        return graph

    def counted(self: torch.nn.Module, *arguments: Any, **keywords: Any) -> Any:
        visits.append(type(self).__name__)
        return named_modules(self, *arguments, **keywords)

    def run_epoch(self: Any, *arguments: Any, **keywords: Any) -> None:
        if self.state.global_step == 0:
            passes.clear()  # on a GPU, an earlier pass measured memory
        with monkeypatch.context() as watched:
            watched.setattr(torch.nn.Module, "named_modules", counted)
            watched.setattr(PreTrainedModel, "train", lambda *_: visits.append("train"))
            watched.setattr(self, "_save_checkpoint", lambda *_: None)
            inner(self, *arguments, **keywords)

    monkeypatch.setattr(Training, "__post_init__", by_lengths)
    monkeypatch.setattr(sft, "can_use_graph", lambda _: True)
    monkeypatch.setattr(sft, "compiled_layers", nullcontext)
    monkeypatch.setattr(sft, "graph_for", passes_of)
    monkeypatch.setattr(Trainer, "_run_epoch", run_epoch)
    fitted = train(tmp_path / "with", config)
    assert passes == [True] * 4 * 2
    assert fitted.losses == pytest.approx(expected.losses, abs=1e-5)
    assert fitted.column("grad_norm") == pytest.approx(expected.column("grad_norm"), rel=1e-3)
    assert "ParameterList" in visits
    assert not {"LlamaMLP", "train"} & set(visits), "all modules"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_learns_what_kernels_one_by_one_learn(train, tmp_path):
    """Over twenty steps, within 0.5 % in bf16."""
    more = packs(96, 4) | {"max_steps": 20, "num_train_epochs": 99, "learning_rate": 1e-3, "micro_batch": 2}
    losses = {}
    for graph in (False, True):
        config = settings(**more, cuda_graph=graph)
        config.model.precision = Precision.bf16
        fitted = train(tmp_path / str(graph), config)
        losses[graph] = fitted.losses
        assert (fitted.trainer.graph is not None) == graph
    assert len(losses[True]) == 20
    assert losses[True] == pytest.approx(losses[False], rel=5e-3)
