"""The families of backbones as data: one row each, read by plans and by the finder; no torch here.

A row says what a config.json calls its sizes, which tasks the family can do, and the few facts that
methods and protocols need. Where the FFNs are is found from the modules (`finder`), not said here.
Every model type of the table is converted by a test; any other one has to prove itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

from moe_runner.options.task import FormName
from moe_runner.registry import FAMILIES

HIDDEN = {  # our name -> its name in the config.json of Hugging Face
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
}
POSITIONS = ("max_position_embeddings", "max_seq_len", "n_positions")  # of models without a row
GPT2 = {
    "d_model": "n_embd",
    "d_ff": "n_inner",
    "num_layers": "n_layer",
    "vocab_size": "vocab_size",
    "max_positions": "n_positions",
}
T5 = {
    "d_model": "d_model",
    "d_ff": "d_ff",
    "num_layers": "num_layers",  # of each stack; num_decoder_layers is the same in all T5
    "vocab_size": "vocab_size",
}  # positions are relative: n_positions of older files is no limit
BART = {**HIDDEN, "d_model": "d_model", "d_ff": "encoder_ffn_dim", "num_layers": "encoder_layers"}
PICTURES = {ours: HIDDEN[ours] for ours in ("d_model", "d_ff", "num_layers")}  # no vocabulary
NO_SIZES: Mapping[str, str] = {}  # more than one width

ENCODER: tuple[FormName, ...] = ("classification",)
DECODER: tuple[FormName, ...] = ("classification", "language_modelling", "instruct")
CAUSAL: tuple[FormName, ...] = ("language_modelling", "instruct")  # no classifier in transformers
SEQ2SEQ: tuple[FormName, ...] = ("text_to_text",)
IMAGES: tuple[FormName, ...] = ("domain_generalisation",)

QV = ("q_proj", "v_proj")
QUERY_VALUE = ("query", "value")
FUSED = ("query_key_value",)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is true of a family of backbones.

    Args:
        name: as in `model.family`; part of stored runs.
        model_types: the `model_type` of their config.json; empty: the name is the only one.
        sizes: our name of a size -> its name in config.json.
        d_ff_times: d_ff is so many times d_model where config.json gives none.
        gated: whether its FFNs are gated; a pair: the key of config.json that says so, and how its
            value begins then (a string) or what it is.
        forms: of tasks that the family can do; none: it can be converted by the library only.
        has_options: whether a file of conf/model is of this family, so that messages name it.
        stacks: 2 for an encoder-decoder, which has `num_layers` twice.
        lora_targets: attention projections, query and value or the fused one, for messages.
        bundled: the model option whose weights are part of this project.
        reference_extras: EMoE's code has its extras for this family (its Llama code has none).
        dropout_after_activation: where EMoE's code drops neurons: vision after, language before.
            Its vision code also leaves GMoE's output bias whole (`protocol.whole_vision_bias`).
        reads_experts: its pretrained experts become those of `moe` and its like (Switch).
        residual_dropout: the module of a block that drops the FFN's output, where the authors' code
            has it elsewhere (`protocol.residual_dropout`); None: it has not.
        sparse_every: every so many layers is a mixture of experts already; 0: none, or the library
            keeps it.
        top_k: pretrained experts of a token, where the modules do not say it.
        counts_after_padding: positions begin behind the padding's id (RoBERTa), so that 514 rows
            are enough for 512 tokens.
        shares_layers: groups of layers call one FFN (ALBERT).
        patch_size: pixels a side of a patch of images, for estimates.
        any_image_size: its forward pass interpolates positions to the image's size.
        modeling: a module that has the classes and registers them with transformers when it is
            imported; None: they are transformers' own.
    """

    name: str
    model_types: tuple[str, ...] = ()
    sizes: Mapping[str, str] = field(default_factory=lambda: HIDDEN)
    d_ff_times: int | None = None
    gated: bool | tuple[str, str | bool] = False
    forms: tuple[FormName, ...] = ()
    has_options: bool = False
    stacks: int = 1
    lora_targets: tuple[str, ...] = ()
    bundled: str | None = None
    reference_extras: bool = True
    dropout_after_activation: bool = False
    reads_experts: bool = False
    residual_dropout: str | None = None
    sparse_every: int = 0
    top_k: int | None = None
    counts_after_padding: bool = False
    shares_layers: bool = False
    patch_size: int = 16
    any_image_size: bool = False
    modeling: str | None = None

    def classes(self) -> ModuleType | None:
        """Import the module of the family's own classes, if it has one."""
        return None if self.modeling is None else import_module(self.modeling)

    @property
    def types(self) -> tuple[str, ...]:
        """The `model_type` values of config.json."""
        return self.model_types or (self.name,)

    def sizes_of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Read the sizes from the content of a config.json, by our names.

        Args:
            config: of one of the family's types.

        Returns:
            Those that are there, and `gated` where the config decides.
        """
        found: dict[str, Any] = {
            ours: size
            for ours, theirs in self.sizes.items()
            if (size := _size(config.get(theirs), together=ours == "num_layers")) is not None
        }
        if self.d_ff_times is not None and "d_model" in found:
            found.setdefault("d_ff", self.d_ff_times * found["d_model"])
        if self.counts_after_padding and "max_positions" in found:
            padding = config.get("pad_token_id")
            found["max_positions"] -= 1 + (padding if isinstance(padding, int) else 1)
        if isinstance(self.gated, tuple):
            key, value = self.gated
            given = config.get(key)
            found["gated"] = given is True if value is True else str(given).startswith(str(value))
        return found


def _size(given: Any, *, together: bool) -> int | None:
    """Read a size; of a list of them (one per layer, or per group of layers) the one, or the sum.

    Args:
        given: the value of a config.json.
        together: sum a list up, instead of taking what all its entries are.
    """
    if isinstance(given, list) and given and all(isinstance(each, int) for each in given):
        if together:
            return sum(given)
        return given[0] if len(set(given)) == 1 else None
    return given if isinstance(given, int) else None


def llama_like(
    name: str, *types: str, forms: tuple[FormName, ...] = DECODER, **facts: Any
) -> Family:
    """Make a row of a decoder with a gated FFN of three projections."""
    facts = {"lora_targets": QV, "reference_extras": False, **facts}
    return Family(name=name, model_types=types, forms=forms, gated=True, **facts)


def bert_like(name: str, *types: str, **facts: Any) -> Family:
    """Make a row of an encoder for text."""
    facts = {"lora_targets": QUERY_VALUE, **facts}
    return Family(name=name, model_types=types, forms=ENCODER, **facts)


def vision(name: str, **facts: Any) -> Family:
    """Make a row of an encoder for images that takes them in any size."""
    facts = {"sizes": PICTURES, "forms": IMAGES, "lora_targets": QV, **facts}
    return Family(name=name, dropout_after_activation=True, any_image_size=True, **facts)


def bart_like(name: str, *types: str, **facts: Any) -> Family:
    """Make a row of an encoder-decoder with its FFN inline in the block."""
    facts = {"forms": SEQ2SEQ, "sizes": BART, "stacks": 2, "lora_targets": QV, **facts}
    return Family(name=name, model_types=types, **facts)


TABLE = (
    # the families of the papers, with models of this project
    bert_like("bert", bundled="bert_tiny", has_options=True),
    Family(
        name="gpt2", sizes=GPT2, d_ff_times=4, forms=DECODER, lora_targets=("c_attn",),
        bundled="gpt2_tiny", has_options=True, residual_dropout="mlp.dropout",
    ),
    llama_like("llama", bundled="llama_tiny", has_options=True),
    Family(
        name="t5", sizes=T5, gated=("feed_forward_proj", "gated-"), forms=SEQ2SEQ, stacks=2,
        lora_targets=("q", "v"), has_options=True,
    ),
    Family(
        name="switch", model_types=("switch_transformers",), sizes=T5, forms=SEQ2SEQ, stacks=2,
        lora_targets=("q", "v"), bundled="switch_tiny", has_options=True, reads_experts=True,
        sparse_every=2, top_k=1,
    ),
    Family(
        name="vit", model_types=("vit", "deit"), forms=IMAGES, lora_targets=("q_proj", "v_proj"),
        bundled="vit_tiny", has_options=True, dropout_after_activation=True,
    ),
    # images
    vision("beit"),
    vision("data2vec-vision", lora_targets=QUERY_VALUE),
    vision(
        "dinov2", sizes={"d_model": "hidden_size", "num_layers": "num_hidden_layers"},
        d_ff_times=4, gated=("use_swiglu_ffn", True), patch_size=14, has_options=True,
    ),
    # encoders for text
    bert_like(
        "roberta", "roberta", "xlm-roberta", "camembert", counts_after_padding=True,
        has_options=True,
    ),
    bert_like("deberta", lora_targets=("in_proj",)),
    bert_like("deberta-v2", lora_targets=("query_proj", "value_proj"), has_options=True),
    bert_like("electra"),
    bert_like("ernie"),
    bert_like("rembert"),
    bert_like("roformer"),
    bert_like("convbert"),
    bert_like("mpnet", lora_targets=("q", "v"), counts_after_padding=True),
    bert_like("xmod", counts_after_padding=True),
    bert_like("longformer", counts_after_padding=True),
    bert_like("mobilebert"),
    bert_like("esm"),
    bert_like("albert", shares_layers=True),
    bert_like(
        "distilbert",
        sizes={**HIDDEN, "d_model": "dim", "d_ff": "hidden_dim", "num_layers": "n_layers"},
        lora_targets=("q_lin", "v_lin"), has_options=True,
    ),
    bert_like("modernbert", gated=True, lora_targets=("Wqkv",), has_options=True),
    bert_like("eurobert", gated=True, lora_targets=QV),
    bert_like("nomic_bert", gated=True, lora_targets=QV),
    bert_like(
        "funnel", lora_targets=("q_head", "v_head"),
        sizes={**HIDDEN, "d_model": "d_model", "d_ff": "d_inner", "num_layers": "block_sizes"},
    ),
    bert_like(
        "xlnet", lora_targets=(),
        sizes={**HIDDEN, "d_model": "d_model", "d_ff": "d_inner", "num_layers": "n_layer"},
    ),
    Family(name="layoutlmv3"),
    # decoders with a plain FFN
    Family(name="gpt_neox", forms=DECODER, lora_targets=FUSED, has_options=True),
    Family(
        name="gpt_neo", sizes={**HIDDEN, "num_layers": "num_layers"}, d_ff_times=4, forms=DECODER,
        lora_targets=QV,
    ),
    Family(name="gptj", sizes=GPT2, d_ff_times=4, forms=DECODER, lora_targets=QV),
    Family(
        name="codegen", sizes=GPT2, d_ff_times=4, forms=CAUSAL, lora_targets=("qkv_proj",)
    ),
    Family(
        name="gpt_bigcode", sizes=GPT2, d_ff_times=4, forms=DECODER, lora_targets=("c_attn",)
    ),
    Family(
        name="bloom", sizes={**HIDDEN, "num_layers": "n_layer"}, d_ff_times=4, forms=DECODER,
        lora_targets=FUSED,
    ),
    Family(
        name="falcon", sizes={**HIDDEN, "d_ff": "ffn_hidden_size"}, d_ff_times=4, forms=DECODER,
        lora_targets=FUSED,
    ),
    Family(
        name="mpt", d_ff_times=4, forms=DECODER, lora_targets=("Wqkv",),
        sizes={**HIDDEN, "d_model": "d_model", "num_layers": "n_layers",
               "max_positions": "max_seq_len"},
    ),
    Family(
        name="opt", sizes={**HIDDEN, "d_ff": "ffn_dim"}, forms=DECODER, lora_targets=QV,
        has_options=True,
    ),
    Family(name="phi", forms=DECODER, lora_targets=QV),
    Family(name="persimmon", forms=DECODER, lora_targets=FUSED),
    Family(name="starcoder2", forms=DECODER, lora_targets=QV),
    Family(name="nemotron", forms=DECODER, lora_targets=QV),
    Family(name="biogpt", forms=DECODER, lora_targets=QV),
    Family(
        name="xglm", forms=CAUSAL, lora_targets=QV,
        sizes={**HIDDEN, "d_model": "d_model", "d_ff": "ffn_dim", "num_layers": "num_layers"},
    ),
    Family(
        name="ctrl", forms=DECODER, lora_targets=("Wq", "Wv"), sizes={**GPT2, "d_ff": "dff"}
    ),
    # decoders with a gated FFN
    llama_like("mistral"),
    llama_like("qwen2", has_options=True),
    llama_like("qwen3", has_options=True),
    llama_like("gemma"),
    llama_like("gemma2", has_options=True),
    llama_like("gemma3", "gemma3_text"),
    llama_like("gemma3n", "gemma3n_text", forms=CAUSAL),
    llama_like("olmo", forms=CAUSAL),
    llama_like("olmo2"),
    llama_like("smollm3"),
    llama_like("granite", forms=CAUSAL),
    llama_like("cohere", forms=CAUSAL),
    llama_like("cohere2", forms=CAUSAL),
    llama_like("exaone4"),
    llama_like("ernie4_5", forms=CAUSAL),
    llama_like("helium"),
    llama_like("hunyuan_v1_dense"),
    llama_like("stablelm"),
    llama_like("lfm2", forms=CAUSAL),
    llama_like("phi3", lora_targets=("qkv_proj",)),
    llama_like("glm"),
    llama_like("glm4"),
    # encoder-decoders for text
    Family(
        name="mt5", model_types=("mt5", "umt5", "longt5"), sizes=T5,
        gated=("feed_forward_proj", "gated-"), forms=SEQ2SEQ, stacks=2, lora_targets=("q", "v"),
    ),
    Family(name="t5gemma", sizes=NO_SIZES, gated=True, stacks=2, lora_targets=QV),
    bart_like("bart"),
    bart_like("mbart"),
    bart_like("pegasus"),
    bart_like("bigbird_pegasus", lora_targets=(*QUERY_VALUE, *QV)),
    bart_like("blenderbot"),
    bart_like("marian"),
    bart_like("m2m_100"),
    bart_like("led", lora_targets=(*QUERY_VALUE, *QV)),
    bart_like("whisper", forms=()),
    # images, sound, several towers: converted by the library, no task of ours
    *(
        Family(name=name, sizes=NO_SIZES)
        for name in (
            "audio-spectrogram-transformer", "blip", "clip", "convnext", "dinov3_vit", "hiera",
            "hubert", "idefics3", "llava", "paligemma", "pvt", "qwen2_5_vl", "qwen2_vl", "siglip",
            "swin", "swinv2", "vilt", "vit_mae", "wav2vec2", "wavlm",
        )
    ),
    # mixtures of experts already: `method=dense` only, but for the shared experts of some
    llama_like("mixtral"),
    llama_like("qwen2_moe"),
    llama_like("qwen3_moe"),
    llama_like("olmoe", forms=CAUSAL),
    llama_like("granitemoe", forms=CAUSAL),
    llama_like("gpt_oss"),
    llama_like("phimoe"),
    llama_like("jetmoe", lora_targets=("kv_proj",)),
    llama_like("jamba"),
    llama_like("deepseek_v2", lora_targets=("q_proj", "q_b_proj")),
    llama_like("deepseek_v3", lora_targets=("q_b_proj",)),
    llama_like("glm4_moe", forms=CAUSAL),
    llama_like("ernie4_5_moe", forms=CAUSAL),
    llama_like("dbrx", forms=CAUSAL, sizes=NO_SIZES, lora_targets=("Wqkv",)),
    bart_like("nllb-moe", top_k=2),
)  # fmt: skip
ROWS: Mapping[str, Family] = {row.name: row for row in TABLE}


def family_of_type(model_type: str) -> Family | None:
    """Look up the family of a `model_type` of Hugging Face; None if there is no row."""
    return next((row for row in FAMILIES.values() if model_type in row.types), None)


def name_of_type(model_type: str) -> str:
    """Name the family of a `model_type`; without a row it is its own."""
    row = family_of_type(model_type)
    return model_type if row is None else row.name


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Read how many tokens a text may have, as `Model.max_positions`, whichever name it has.

    Args:
        config: of a model, with or without a row.

    Returns:
        The number; None: any, or the config does not say.
    """
    if (row := family_of_type(str(config.get("model_type")))) is not None:
        found: int | None = row.sizes_of(config).get("max_positions")
        return found
    named = (config.get(name) for name in POSITIONS)
    return next((size for size in named if isinstance(size, int)), None)


def is_verified(model_type: str) -> bool:
    """Tell whether a test converts models of a type, so that they need not prove themselves."""
    return any(model_type in row.types for row in ROWS.values())
