from setuptools import setup, find_packages
setup(name='deim_mmdet', version='0.1.0', packages=find_packages(include=['deim_mmdet*']))
