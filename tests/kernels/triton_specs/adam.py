"""One tensor, with and without a mask."""

from . import Spec

POINTERS = dict.fromkeys(("parameter_ptr", "gradient_ptr", "first_ptr", "second_ptr"), "*fp32") | {"rows_ptr": "*u8"}
NUMBERS = dict.fromkeys(("step_size", "beta_first", "beta_second", "eps", "correction"), "fp32")
SIGNATURE = POINTERS | {"total": "i32", "width": "i32"} | NUMBERS
SPECS = [Spec("step_kernel", SIGNATURE, {"MASKED": masked, "BLOCK": 1024}) for masked in (False, True)]
