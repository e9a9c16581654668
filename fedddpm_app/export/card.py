"""The model card of an exported run, with the metadata that the Hugging Face hub reads.

Nothing private is in it: no image of a client, no closest pair, no path, no name of a host, a user or a run, no count
of a single client. Texts of the run are escaped, because it may come from somewhere else.
"""

import json

from fedddpm_app.algorithms import REGISTRY
from fedddpm_app.algorithms.fedddpm import FedDDPM
from fedddpm_app.config import Config, Scalar, changed_keys, without_paths
from fedddpm_app.data.sources import LOCAL
from fedddpm_app.export.citations import DDPM, GUIDANCE, SOURCES, Paper
from fedddpm_app.export.exported import ExportedRun
from fedddpm_app.export.markdown import fenced, literal, number, table
from fedddpm_app.export.metadata import CardFacts, metadata, of_model, public_data, sampler_of
from fedddpm_app.export.models import SAMPLES
from fedddpm_app.export.privacy import privacy_notes
from fedddpm_app.launch.flower_run import to_toml

_PACKAGE = "fedddpm-app"
_MOST_CLASSES = 100  # in the list of names
_PARTITIONS = {
    "dirichlet": "dirichlet-alpha",
    "quantity-skew": "dirichlet-alpha",
    "pathological": "classes-per-client",
    "shards": "shards-per-client",
}


def model_card(run: ExportedRun, facts: CardFacts) -> str:
    """Return the content of ``README.md``."""
    sections = {
        "Use": _use(run, facts),
        "Data": _data(run),
        "Training": _training(run, facts),
        "Metrics": _metrics(run, facts),
        "Privacy": _bullets(privacy_notes(run, facts.client)),
        "Reproduce": _reproduce(run),
        "Licence": literal(facts.license) if facts.license else "No licence was stated with the export.",
        "Citation": "\n\n".join(fenced(paper.bibtex, "bibtex") for paper in _papers(run)),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    sheet = f"![Generated images]({SAMPLES})\n\n" if facts.has_samples else ""
    return f"---\n{metadata(run, facts)}\n---\n\n# {literal(facts.title)}\n\n{_summary(run, facts)}\n\n{sheet}{body}\n"


def _summary(run: ExportedRun, facts: CardFacts) -> str:
    data, name = run.config.data, run.config.run.algorithm
    what, _ = SOURCES.get(name, (f"the algorithm {literal(without_paths(name))}", None))
    kind = "A class-conditional" if data.class_conditional else "An unconditional"
    colour = "grey" if data.image_channels == 1 else "RGB"
    return (
        f"{kind} diffusion model for {colour} images of {data.image_size}x{data.image_size} pixels, trained on the "
        f"data of {'one of ' if facts.client else ''}{data.num_clients} clients by {what}, with {_PACKAGE} on [Flower](https://flower.ai)."
    )


def _use(run: ExportedRun, facts: CardFacts) -> str:
    paragraphs = [fenced(_code(run, facts.place), "python")]
    if facts.needs_package:
        paragraphs.append(f"It needs the Python package {_PACKAGE}, and no code of this folder is run.")
    if run.config.data.class_conditional:
        paragraphs += _about_classes(run)
    paragraphs.append("With the package, `fedddpm sample DIR` and `fedddpm evaluate DIR` take this folder too.")
    return "\n\n".join(paragraphs)


def _code(run: ExportedRun, place: str) -> str:
    """Return code that generates images; by the sampler of the metrics if diffusers has it as it is."""
    evaluation, conditional = run.config.evaluation, run.config.data.class_conditional
    is_ddim = evaluation.eval_final_sampler == "ddim"
    steps = evaluation.eval_final_sampler_steps if is_ddim else run.config.diffusion.diffusion_steps
    kind = "ClassConditionalPipeline" if conditional else "DDPMPipeline"
    of_diffusers = ["DDIMScheduler"] * is_ddim + [kind] * (not conditional)
    lines = [f"from diffusers import {', '.join(of_diffusers)}"] if of_diffusers else []
    lines += [f"from fedddpm_app import {kind}"] * conditional
    lines += ["", f"pipeline = {kind}.from_pretrained({json.dumps(place)})"]
    if is_ddim:
        lines.append("# the sampler of the metrics below")
        swap = 'DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")'
        lines.append(f"pipeline.scheduler = {swap}")
    count = "class_labels=[0, 1]" if conditional else "batch_size=4"
    return "\n".join([*lines, f"images = pipeline({count}, num_inference_steps={steps}).images"])


def _about_classes(run: ExportedRun) -> list[str]:
    paragraphs = ["The model was not trained for guidance: a `guidance_scale` other than 1 is refused."]
    if run.config.data.class_dropout:
        paragraphs = [
            f"`guidance_scale` is {run.config.diffusion.guidance_scale:g} if you do not give it: 1 is the model of the "
            "classes, larger values make them clearer and images less diverse (classifier-free guidance)."
        ]
    if run.class_names:
        named = ", ".join(f"{k} = {literal(each, 40)}" for k, each in enumerate(run.class_names[:_MOST_CLASSES]))
        paragraphs.append(f"Classes: {named}{', ...' if len(run.class_names) > _MOST_CLASSES else ''}.")
    return paragraphs


def _data(run: ExportedRun) -> str:
    data = run.config.data
    public = public_data(run)
    source = literal(data.dataset) if public else "images that are not public"
    source += f" ([{public}](https://huggingface.co/datasets/{public}))" if "/" in public else ""
    key = _PARTITIONS.get(data.partition)
    setting = f" with {key} = {run.run_config[key]}" if key else ""
    facts = [
        f"Source: {source}.",
        f"Images: {data.image_size}x{data.image_size} pixels, {data.image_channels} channel(s), in [-1, 1].",
        f"Clients: {data.num_clients}, partition {data.partition}{setting}.",
    ]
    if run.num_images:
        facts.append(f"Training images of all clients: {run.num_images:,}.")
    return _bullets(facts)


def _training(run: ExportedRun, facts: CardFacts) -> str:
    config = run.config
    diffusion = config.diffusion
    name = config.run.algorithm
    what, paper = SOURCES.get(name, ("not an algorithm of the package", None))
    cited = f", [arXiv {paper.arxiv}]({paper.url})" if paper else ""
    average = config.training.server_ema_decay and not facts.client
    notes = [
        f"Algorithm: `{name}`, {what}{cited}." if name in REGISTRY else f"Algorithm: {literal(without_paths(name))}.",
        *lengths(config),
        f"Model: `UNet2DModel`, channels {config.unet.channels}.",
        f"Diffusion: T = {diffusion.diffusion_steps}, {diffusion.beta_schedule} betas, it predicts "
        f"{diffusion.prediction_type}.",
        f"Weights: {'moving average over rounds' if average else 'of the end of the training'}, float32, safetensors.",
    ]
    if config.data.class_dropout:
        notes.append(
            f"Classifier-free guidance: labels were dropped with probability {config.data.class_dropout:g} "
            f"([arXiv {GUIDANCE.arxiv}]({GUIDANCE.url}))."
        )
    return _bullets(notes)


def lengths(config: Config) -> list[str]:
    """Return how long the parts of the training are."""
    name, training, clients = config.run.algorithm, config.training, config.data.num_clients
    kind = REGISTRY.get(name)
    local = f"{training.local_steps} steps" if training.local_steps else f"{training.local_epochs} epochs"
    chosen = config.run.clients_per_round or clients
    in_rounds = f", with {chosen} of {clients} clients, {local} per client"
    if kind is not None and not kind.trains_on_clients and name != "pdfed":  # whose peers train by themselves
        in_rounds = ", in which no client trains"
    notes = [f"Rounds: {config.run.num_rounds}{in_rounds}."]
    builder = kind if kind is not None and issubclass(kind, FedDDPM) else None
    if name == "mixture" or (builder and builder.pretrains(config)):
        notes.append(f"Own models of the clients: {config.pretrain.steps} steps for each.")
    if builder and builder.builds(config):
        notes.append(f"Auxiliary set: {config.auxiliary.size:,} images, generated by the clients' own models.")
    return notes


def _metrics(run: ExportedRun, facts: CardFacts) -> str:
    rows = [
        [
            literal(metric.name),
            number(metric.value),
            number(metric.std),
            f"{metric.n:,}",
            f"{metric.reference_n:,} {literal(metric.reference)}",
            number(metric.floor),
            literal(sampler_of(metric)),
        ]
        for metric in of_model(run, facts.client)
    ]
    if not rows:
        return "The run measured nothing at its end."
    head = ["metric", "value", "±", "generated", "against", "floor", "sampler"]
    return (
        f"{table(head, rows)}\n\nThe floor is the same metric between real images, which a perfect generator would "
        "reach. A name with `-classifier` uses the features of a small network that was trained on the real images; "
        "only `fid` and `kid` use the standard Inception network. Do not compare others with published values."
    )


def _reproduce(run: ExportedRun) -> str:
    keys = {key: _without_places(value) for key, value in changed_keys(run.run_config).items()}
    if "dataset" in keys:
        keys["dataset"] = run.config.data.dataset if public_data(run) else f"{LOCAL}/images"
    recipe = to_toml(keys) or "# all keys have their defaults"
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    commit = f" Commit of the source: {run.commit}." if run.commit else ""
    path = "" if public_data(run) else "Put the path of your own images in the place of `/images`. "
    return (
        f"`fedddpm run -c run.toml`, with this `run.toml`:\n\n{fenced(recipe, 'toml')}\n\n{path}"
        f"Versions: {literal(versions, 400) or 'not known'}.{commit}"
    )


def _papers(run: ExportedRun) -> list[Paper]:
    _, paper = SOURCES.get(run.config.run.algorithm, ("", None))
    return [each for each in (paper, DDPM, GUIDANCE if run.config.data.class_dropout else None) if each]


def _without_places(value: Scalar) -> Scalar:
    return without_paths(value) if isinstance(value, str) else value


def _bullets(sentences: list[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
