"""BIB: biological sequences designed from offline data in both directions, by input gradients.

A design is a table z of scores of letters, softened to p = softmax(z); a language model reads it
and gives features h, the mean over its tokens.  With a linear head the model is its own tangent
kernel k(x, x') = h(x) . h(x'), and ridge regression has a closed form in both directions:

    L_f = (K_hl (K_ll + b I)^-1 y_l - y_h)^2           what the offline data predict of the design
    L_b = mean((K_lh (K_hh + b' I)^-1 y_h - y_l)^2)    what the design predicts of the offline data

The engine gives both losses, an auxiliary score a, and the gradients of the three by z; the loop
around it is `intaglio.runtime.design`.  K_hl (K_ll + b I)^-1 y_l = h . w with
w = (F'F + b I)^-1 F'y_l, F the offline features: `fit` solves that in float64.

Source: Chen et al. 2023, arXiv:2301.02931, sections 3 and 4; DNABERT: Ji et al. 2021; ProtBERT:
Elnaggar et al. 2021, arXiv:2007.06225.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layout import CheckpointLayout
from .model import Model
from .parts import bib_checkpoints
from .parts.bert import Bert, one_hot
from .training import Drawn

LETTERS = {"dna": 4, "protein": 20}  # A, T, C, G; the amino acids as ProtBERT counts them
FIRST = 5  # the first id of a word that is made of letters
BEGIN, END = 2, 3  # ids of [CLS] and [SEP]
RIDGE = 1e-6  # of the mean of a kernel's diagonal


@dataclass(frozen=True, kw_only=True)
class Config:
    """`alphabet` is dna, whose words are triples of letters, or protein, whose words are letters.

    `length` counts the letters of a design, `offline` the sequences that were measured; `target`
    is the standardised score that a design should have.  The other sizes are the encoder's.
    """

    alphabet: str = "dna"
    length: int = 8
    offline: int = 256
    target: float = 10.0
    vocab_size: int = 69
    hidden_size: int = 32
    intermediate_size: int = 64
    num_layers: int = 2
    num_heads: int = 2
    max_positions: int = 16
    norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.alphabet not in LETTERS:
            raise ValueError(f"alphabet is {self.alphabet!r}; it should be {' or '.join(LETTERS)}")
        words = self.letters**3 if self.triples else self.letters
        if self.vocab_size < FIRST + words:
            raise ValueError(f"vocab_size {self.vocab_size} has no room for {words} words")
        if self.triples and self.length < 3:
            raise ValueError("a design of DNA has 3 letters at least")
        if self.tokens > self.max_positions:
            raise ValueError(f"max_positions {self.max_positions} is below {self.tokens} tokens")

    @property
    def letters(self) -> int:
        """Letters of the alphabet."""
        return LETTERS[self.alphabet]

    @property
    def triples(self) -> bool:
        """Whether a word is three letters that follow each other."""
        return self.alphabet == "dna"

    @property
    def tokens(self) -> int:
        """Words of a design, with the two around it."""
        return self.length + 2 - 2 * self.triples


TINY = Config()
PROTEIN = Config(alphabet="protein", length=12, vocab_size=30)


class Bib(nn.Module):
    """Losses of a design in both directions, its score, and their gradients by its table."""

    around: Tensor
    features: Tensor
    labels: Tensor
    weight: Tensor
    scale: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.bert = Bert(config)
        self.main = nn.Linear(size, 1)
        around = torch.eye(config.vocab_size)[[BEGIN, END]]
        self.register_buffer("around", around, persistent=False)
        self.register_buffer("features", torch.zeros(config.offline, size))
        self.register_buffer("labels", torch.zeros(config.offline))
        self.register_buffer("weight", torch.zeros(size))
        self.register_buffer("scale", torch.tensor((0.0, 1.0)))

    @torch.no_grad()
    def fit(self, features: Tensor, scores: Tensor) -> None:
        """Take the offline data: features [N, hidden] and what was measured [N]."""
        exact, y = features.double(), scores.double()
        mean, deviation = y.mean(), y.std()
        y = (y - mean) / deviation
        gram = exact.T @ exact
        ridge = RIDGE * gram.trace() / len(exact)
        weight = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=y.dtype), exact.T @ y)
        self.features.copy_(exact)
        self.labels.copy_(y)
        self.weight.copy_(weight)
        self.scale.copy_(torch.stack((mean, deviation)))

    def embed(self, design: Tensor) -> Tensor:
        """Features [B, hidden] of designs [B, length, letters], as tables of scores."""
        words = self.words(design)
        batch = words.shape[0]
        rest = self.config.vocab_size - FIRST - words.shape[-1]
        begin, end = (word.expand(batch, 1, -1) for word in (self.around[:1], self.around[1:]))
        words = torch.cat((begin, F.pad(words, (FIRST, rest)), end), 1)
        hidden: Tensor = self.bert(words)[:, 1:-1].mean(1)
        return hidden

    def words(self, design: Tensor) -> Tensor:
        """The likeliest words [B, T, words] as one-hots, with the gradient of the likelihoods."""
        p = design.softmax(-1)
        if self.config.triples:
            first, second, third = p[:, :-2], p[:, 1:-1], p[:, 2:]
            pairs = (first[..., :, None] * second[..., None, :]).flatten(-2)
            p = (pairs[..., :, None] * third[..., None, :]).flatten(-2)
        return one_hot(p.argmax(-1), p.shape[-1], p) - p.detach() + p

    def losses(self, design: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Auxiliary score, loss forward and loss backward, [B] each, of designs."""
        h = self.embed(design)
        target = self.config.target
        score = self.main(h)[:, 0] * self.scale[1] + self.scale[0]
        forward = (h @ self.weight - target).square()
        own = (h * h).sum(-1, keepdim=True) * (1 + RIDGE)
        backward = ((h * (target / own)) @ self.features.T - self.labels).square().mean(-1)
        return score, forward, backward

    def forward(self, design: Tensor) -> dict[str, Tensor]:
        """Of designs [B, length, letters]: the three of `losses`, and their gradients."""
        with torch.enable_grad():
            z = design.clone().requires_grad_()
            losses = self.losses(z)
            slopes = [torch.autograd.grad(x.sum(), z, retain_graph=True)[0] for x in losses]
        names = ("score", "loss_forward", "loss_backward")
        gradients = ("score_gradient", "forward_gradient", "backward_gradient")
        plain = (x.detach() for x in losses)
        return dict(zip((*names, *gradients), (*plain, *slopes), strict=True))


def _measured(design: Tensor) -> Tensor:
    """What is measured of designs, by a formula: how often A follows T, and As less Cs."""
    letters = design.argmax(-1)
    pairs = ((letters[:, :-1] == 1) & (letters[:, 1:] == 0)).sum(1)
    return 1.0 * pairs + 0.5 * ((letters == 0).sum(1) - (letters == 2).sum(1))


def _scored(module: nn.Module, batch: int, generator: torch.Generator) -> Tensor:
    """Of the score that the auxiliary head gives to designs."""
    assert isinstance(module, Bib)
    design = 3 * inputs(module.config, batch, 0, generator)["design"]
    return F.mse_loss(module.main(module.embed(design))[:, 0], _measured(design))


@torch.no_grad()
def _fit(module: nn.Module, generator: torch.Generator) -> None:
    """Take offline data; the auxiliary head is scaled to what was measured, as it was trained."""
    assert isinstance(module, Bib)
    design = 3 * inputs(module.config, module.config.offline, 0, generator)["design"]
    module.fit(module.embed(design), _measured(design))
    module.scale.copy_(torch.tensor((0.0, 1.0)))


def inputs(config: Config, batch: int, _time: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Tables of scores of `batch` designs; there is no time."""
    return {"design": torch.randn((batch, config.length, config.letters), generator=generator)}


def axes(config: Config) -> dict[str, str]:
    """Rows alone are free."""
    return {"design": f"batchx{config.length}x{config.letters}"}


def build(config: Config) -> Bib:
    """The module of `config`, freshly initialised."""
    return Bib(config)


RELEASED = CheckpointLayout(
    name="BIB",
    source="github GGchen1997/BIB-ICML2023-Submission @ 4c8de45e21bd54f74f8c516960bcc5a517c71be8, "
    "dna/my_model.py, dna/BIB.py, protein/my_model.py, protein/BIB.py",
    fits=bib_checkpoints.fits,
    configure=bib_checkpoints.configure,
    weights=bib_checkpoints.weights,
    beside=bib_checkpoints.FILES,
    immaterial=bib_checkpoints.IMMATERIAL,
)

BIB = Model(
    name="bib",
    summary="Design of DNA and proteins by input gradients of losses in both directions.",
    config=Config,
    build=build,
    inputs=inputs,
    axes=axes,
    presets={"tiny": TINY, "protein": PROTEIN},
    recipe=Drawn(loss=_scored, unit="squared", steps=600, finish=_fit),
    layouts=(RELEASED,),
    source="arXiv:2301.02931",
)
