"""Packaging of deim_mmdet: metadata, and what MIM looks for in an installed package.

``mim train deim_mmdet …`` looks for ``configs``, ``tools`` and ``model-index.yml`` in the folder
``.mim`` of the installed package. A wheel holds copies of them; an editable install holds links
to the checkout, so that edits count at once.

The operators of ``deim_mmdet/ops/csrc`` are compiled where that is possible: for the CPU with a C++
compiler, for GPUs with nvcc and a torch for CUDA. The package works without them, only slower.
"""

import os
import runpy
import shutil
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
PACKAGE = 'deim_mmdet'
MIM_ENTRIES = ('configs', 'tools', 'model-index.yml')


def read_version() -> str:
    """Version from ``deim_mmdet/version.py``, without importing the package and so torch."""
    scope = {}
    exec((ROOT / PACKAGE / 'version.py').read_text(), scope)
    return scope['__version__']


class BuildPyWithMim(build_py):
    """Build the package together with its ``.mim`` folder: copies, or links if editable."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            folder = ROOT / PACKAGE / '.mim'
            folder.mkdir(exist_ok=True)
            for entry in MIM_ENTRIES:
                link = folder / entry
                if link.is_symlink():
                    link.unlink()
                link.symlink_to(os.path.relpath(ROOT / entry, folder))
            return
        folder = Path(self.build_lib) / PACKAGE / '.mim'
        # build/ outlives a build: what left the checkout since must not stay in the wheel.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for entry in MIM_ENTRIES:
            source = ROOT / entry
            if source.is_dir():
                shutil.copytree(
                    source, folder / entry, ignore=shutil.ignore_patterns('__pycache__', '*.pyc')
                )
            else:
                shutil.copy2(source, folder / entry)


class EditableWheelForMim(editable_wheel):
    """Editable install that MIM can locate.

    MIM joins the folder of the package's metadata (site-packages) with the first line of
    ``top_level.txt``. In an editable install the package isn't there, so that line is its absolute
    path instead of its name.
    """

    def _ensure_dist_info(self) -> None:
        super()._ensure_dist_info()
        (Path(self.dist_info_dir) / 'top_level.txt').write_text(f'{ROOT / PACKAGE}\n')


def compiled_operators() -> dict:
    """Arguments of ``setup`` that compile the operators; none where it can't be tried.

    ``DEIM_MMDET_WITH_OPS=0`` in the environment leaves them out, as for a wheel for all platforms.
    """
    if os.environ.get('DEIM_MMDET_WITH_OPS') == '0':
        return {}
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        say_uncompiled(f'{error} while building: install torch, then use --no-build-isolation')
        return {}
    sources = 'deim_mmdet/ops/csrc'
    tag = runpy.run_path(ROOT / PACKAGE / 'ops/library.py')['build_tag'](torch.__version__)
    flags = ['-O3', f'-DDEIM_BUILD_TAG={tag}']
    # Comparisons and roundings may be done for several numbers at once: no result depends on it.
    # And no debugging symbols, which would be most of the library.
    host_flags = [*flags, '-fno-trapping-math', '-fno-math-errno', '-fopenmp', '-Wno-psabi', '-g0']
    operators = cpp_extension.CppExtension(
        f'{PACKAGE}.ops._C',
        [f'{sources}/{name}.cpp' for name in ('operator', 'autograd', 'cpu_kernels')],
        extra_compile_args={'cxx': host_flags, 'nvcc': flags},
        extra_link_args=['-fopenmp'],
    )
    without_cuda = {}
    if torch.version.cuda and cpp_extension.CUDA_HOME:
        cuda = cpp_extension.CUDAExtension(
            operators.name,
            [*operators.sources, f'{sources}/operator_cuda.cpp', f'{sources}/cuda_kernels.cu'],
        )
        for part in ('sources', 'include_dirs', 'libraries', 'library_dirs'):
            without_cuda[part] = getattr(operators, part)
            setattr(operators, part, getattr(cuda, part))

    class BuildWhatCompiles(cpp_extension.BuildExtension):
        """With CUDA, else without, else nothing; says which and why."""

        def run(self) -> None:
            state = dict(vars(self))
            try:
                super().run()
            except Exception as error:
                if without_cuda:
                    say_uncompiled(f'for GPUs: {error}')
                    vars(operators).update(without_cuda)
                    without_cuda.clear()
                    vars(self).update(state)
                    self.run()
                else:
                    say_uncompiled(str(error))
                    self.extensions = []

    build = BuildWhatCompiles.with_options(no_python_abi_suffix=True)
    return {'ext_modules': [operators], 'cmdclass': {'build_ext': build}}


def say_uncompiled(reason: str) -> None:
    print(f'{PACKAGE}: operators not compiled, it will be slower: {reason}', file=sys.stderr)


def read_long_description() -> str:
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.exists() else ''


operators = compiled_operators()
setup(
    name=PACKAGE,
    version=read_version(),
    description='DEIM (CVPR 2025): DETR with improved matching for fast convergence, '
    'as a plug-in for MMDetection',
    long_description=read_long_description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords=['object detection', 'DETR', 'DEIM', 'D-FINE', 'real-time', 'MMDetection'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'License :: OSI Approved :: Apache Software License',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={f'{PACKAGE}.ops': ['csrc/*']},
    ext_modules=operators.get('ext_modules', []),
    python_requires='>=3.11',
    install_requires=[
        # Neither stack: pip would install the files of one over those of the other.
        'torch>=2.6',
        'numpy',
        'packaging',
        'pycocotools',
        'scipy',
    ],
    extras_require={
        'openmmlab': ['mmengine>=0.10.7,<0.11', 'mmcv-lite>=2.1,<2.2', 'mmdet>=3.3,<3.4'],
        'onedl': [
            'onedl-mmengine>=0.10.12,<0.11',
            'onedl-mmcv>=2.3.6,<2.4',
            'onedl-mmdetection>=3.5.1,<3.6',
        ],
        'demo': ['matplotlib', 'scikit-learn'],
        'huggingface': ['safetensors'],
        'dinov3': ['timm>=1.0.20'],
        'tensorboard': ['tensorboard'],
        'evaluation': ['faster-coco-eval>=1.8'],
        'export': ['onnx>=1.16', 'onnxruntime>=1.18'],
        'openvino': ['onnx>=1.16', 'onnxruntime>=1.18', 'openvino>=2024.0'],
        'test': ['pytest', 'pytest-timeout', 'matplotlib', 'scikit-learn'],
    },
    cmdclass={
        'build_py': BuildPyWithMim,
        'editable_wheel': EditableWheelForMim,
        **operators.get('cmdclass', {}),
    },
    zip_safe=False,
)
