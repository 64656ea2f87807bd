"""Datasets, training strategies, the training loop and validation for LTX-2.

What is exported here is imported when it is used::

    from ltx_trainer import LtxvTrainer, read_config

    for report in LtxvTrainer(read_config("zorb.yaml")).steps():
        print(report.step, report.losses)
"""

from ltx_core.exports import lazily

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "LoraSettings": "lora",
        "LtxvTrainer": "trainer",
        "ModelFiles": "model_files",
        "ProcessingOptions": "processing.options",
        "TrainerConfig": "config",
        "ValidationSampler": "validation_sampler",
        "add_lora": "lora",
        "find_model": "model_files",
        "load_lora": "lora",
        "plan_memory": "memory_plan",
        "process_dataset": "processing.dataset",
        "read_config": "config_file",
        "save_lora": "lora",
        "write_configuration": "init",
    },
)
