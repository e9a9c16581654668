"""The papers that the algorithms of the registry implement, for a model card."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A paper: the key of its BibTeX entry, authors in BibTeX's form, title, year, and its number on arXiv."""

    key: str
    authors: str
    title: str
    year: int
    arxiv: str

    @property
    def url(self) -> str:
        """Its page."""
        return f"https://arxiv.org/abs/{self.arxiv}"

    @property
    def bibtex(self) -> str:
        """Its BibTeX entry."""
        return (
            f"@misc{{{self.key},\n  author = {{{self.authors}}},\n  title = {{{self.title}}},\n"
            f"  year = {{{self.year}}},\n  eprint = {{{self.arxiv}}},\n  archivePrefix = {{arXiv}}\n}}"
        )


DDPM = Paper(
    "ho2020denoising", "Ho, Jonathan and Jain, Ajay and Abbeel, Pieter", "Denoising Diffusion Probabilistic Models",
    2020, "2006.11239",
)  # fmt: skip
GUIDANCE = Paper(
    "ho2022classifierfree", "Ho, Jonathan and Salimans, Tim", "Classifier-Free Diffusion Guidance", 2022, "2207.12598"
)
_FEDDDPM = Paper(
    "peng2025federated", "Peng, Zihao and Wang, Xijun and Chen, Shengbo and Rao, Hong and Shen, Cong",
    "Federated Learning for Diffusion Models", 2025, "2503.06426",
)  # fmt: skip
_FEDAVG = Paper(
    "mcmahan2017communication",
    "McMahan, H. Brendan and Moore, Eider and Ramage, Daniel and Hampson, Seth and {Ag{\\\"u}era y Arcas}, Blaise",
    "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017, "1602.05629",
)  # fmt: skip
# What each algorithm is, in a few words, and its paper; None for a control
SOURCES: dict[str, tuple[str, Paper | None]] = {
    "fedddpm": ("FedDDPM", _FEDDDPM),
    "fedddpm-plus": ("FedDDPM+", _FEDDDPM),
    "fedddpm-kd": ("an extension of FedDDPM by distillation", _FEDDDPM),
    "fedddpm-late": ("an algorithm of this package that reverses the order of FedDDPM", _FEDDDPM),
    "fedavg": ("FedAvg", _FEDAVG),
    "fedprox": (
        "FedProx",
        Paper(
            "li2020federated",
            "Li, Tian and Sahu, Anit Kumar and Zaheer, Manzil and Sanjabi, Maziar and Talwalkar, Ameet and Smith, "
            "Virginia",
            "Federated Optimization in Heterogeneous Networks", 2018, "1812.06127",
        ),
    ),
    "scaffold": (
        "SCAFFOLD",
        Paper(
            "karimireddy2020scaffold",
            "Karimireddy, Sai Praneeth and Kale, Satyen and Mohri, Mehryar and Reddi, Sashank J. and Stich, Sebastian "
            "U. and Suresh, Ananda Theertha",
            "{SCAFFOLD}: Stochastic Controlled Averaging for Federated Learning", 2019, "1910.06378",
        ),
    ),
    "feddyn": (
        "FedDyn",
        Paper(
            "acar2021federated",
            "Acar, Durmus Alp Emre and Zhao, Yue and Navarro, Ramon Matas and Mattina, Matthew and Whatmough, Paul N. "
            "and Saligrama, Venkatesh",
            "Federated Learning Based on Dynamic Regularization", 2021, "2111.04263",
        ),
    ),
    "fednova": (
        "FedNova",
        Paper(
            "wang2020tackling",
            "Wang, Jianyu and Liu, Qinghua and Liang, Hao and Joshi, Gauri and Poor, H. Vincent",
            "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", 2020, "2007.07481",
        ),
    ),
    "moon": (
        "MOON",
        Paper(
            "li2021model", "Li, Qinbin and He, Bingsheng and Song, Dawn", "Model-Contrastive Federated Learning", 2021,
            "2103.16257",
        ),
    ),
    "feddiffuse": (
        "FedDiffuse",
        Paper(
            "degoede2024training", "de Goede, Matthijs and Cox, Bart and Decouchant, Jeremie",
            "Training Diffusion Models with Federated Learning", 2024, "2406.12575",
        ),
    ),
    "fedphd": (
        "FedPhD",
        Paper(
            "long2025fedphd",
            "Long, Qianyu and Wang, Qiyuan and Anagnostopoulos, Christos and Bi, Daning",
            "{FedPhD}: Federated Pruning with Hierarchical Learning of Diffusion Models", 2025, "2507.06449",
        ),
    ),
    "pdfed": (
        "PDFed",
        Paper(
            "balan2024pdfed", "Balan, Kar and Gilbert, Andrew and Collomosse, John",
            "{PDFed}: Privacy-Preserving and Decentralized Asynchronous Federated Learning for Diffusion Models", 2024,
            "2409.18245",
        ),
    ),
    "centralized": ("centralised training, a control that is not federated", None),
    "local-only": ("training of each client alone, a control that is not federated", None),
    "aux-only": ("training on FedDDPM's auxiliary set alone, a control", _FEDDDPM),
    "kd-only": ("distillation of the clients' models alone, a control", _FEDDDPM),
    "mixture": ("sampling from the clients' own models, a control without federated training", None),
}  # fmt: skip
