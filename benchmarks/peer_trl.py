"""TRL's CPO trainer with SimPO's loss, on all weights or PEFT's LoRA: an optimizer step for every line on standard input.

`benchmarks.peers` and `benchmarks.lora` start it.

It runs in an environment of its own (peers_trl.txt), so it imports nothing of ours. Answers are lines of JSON: the token counts that the
trainer sees, an empty object after each step, and at the end what it logged.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import peft
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainerControl
from trl.experimental.cpo import CPOConfig, CPOTrainer

ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # what the libraries print goes to the log


class StepByStep(TrainerCallback):
    """Holds the trainer until the next line comes. A step counts from there, its reading of data included, to its logged loss."""

    def on_train_begin(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        self._wait(control)

    def on_log(self, args: Any, state: Any, control: TrainerControl, logs: dict[str, Any], **_: Any) -> None:
        if "loss" not in logs:  # the summary at the end
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        print("{}", file=ANSWERS)
        self._wait(control)

    def _wait(self, control: TrainerControl) -> None:
        control.should_training_stop = not sys.stdin.readline()


def adapters(settings: dict[str, Any]) -> peft.LoraConfig:
    """On every matrix of the blocks."""
    return peft.LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    computed: list[int] = []
    # TRL gives the ids by place, PEFT hands them on by name.
    model.register_forward_pre_hook(
        lambda _, given, named: computed.append((given[0] if given else named["input_ids"]).numel()), with_kwargs=True
    )
    config = CPOConfig(
        output_dir=spec["scratch"],
        loss_type="simpo",
        cpo_alpha=0.0,
        beta=spec["beta"],
        simpo_gamma=spec["gamma"],
        max_length=spec["max_tokens"],
        per_device_train_batch_size=spec["batch"],
        gradient_accumulation_steps=spec["pairs"] // spec["batch"],
        gradient_checkpointing=False,
        bf16=spec["bf16"],
        learning_rate=spec["lr"],
        lr_scheduler_type="constant",
        max_steps=10**6,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    data = load_dataset("json", data_files=spec["data"], split="train", cache_dir=spec["scratch"])
    trainer = CPOTrainer(
        model,
        config,
        train_dataset=data.select_columns(["prompt", "chosen", "rejected"]),
        processing_class=tokenizer,
        peft_config=adapters(spec["lora"]) if "lora" in spec else None,
        callbacks=[StepByStep()],
    )
    lengths = [[len(row["chosen_input_ids"]), len(row["rejected_input_ids"])] for row in trainer.train_dataset]
    print(json.dumps({"lengths": lengths}), file=ANSWERS)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    seen = {"loss": "loss", "chosen": "logps/chosen", "rejected": "logps/rejected"}
    tokens = sum(computed) / max(len(logged), 1)
    print(json.dumps({"tokens": tokens} | {ours: [row[theirs] for row in logged] for ours, theirs in seen.items()}), file=ANSWERS)


if __name__ == "__main__":
    main()
