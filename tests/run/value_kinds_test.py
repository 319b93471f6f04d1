"""Values of a wrong kind are refused by name, before anything is built."""

import gin
from mesh_tensorflow.transformer import adaptive_softmax
import pytest

from mtf_moe.decoding import beam_search
from mtf_moe.decoding import sampling
from mtf_moe.run.configured_model import ConfiguredModel
from mtf_moe.text import text_data
from mtf_moe.train import evaluation
from mtf_moe.train import training
from tests import gin_config

# What gin knows of.
assert all((adaptive_softmax, beam_search, evaluation, sampling, text_data,
            training))

FILES = ["models/lm_tiny.gin", "meshes/cpu_1.gin", "data/bytes.gin"]


@gin.configurable(module="value_kinds_test")
def loss(*args, scale=gin.REQUIRED):
  """A user's own function, with a parameter for gin."""
  return args, scale


@gin.configurable(module="value_kinds_test")
def length():
  return 16


def parse(*bindings):
  gin_config.parse(FILES, ["run.perplexity_eval_steps = 1", *bindings])


@pytest.mark.parametrize("binding, parameter, meant", [
    ("run.train_steps = 1e1", "run.train_steps", 10),
    ("batch_size = 4.0", "run.batch_size", 4),
    ("run.batch_size = ('tokens_per_batch', 128.0)", "run.batch_size",
     ("tokens_per_batch", 128)),
    ("sequence_length = 16.0", "run.sequence_length", 16),
    ("run.sequence_length = {'inputs': 16.0, 'targets': 8}",
     "run.sequence_length", {"inputs": 16, "targets": 8}),
    ("num_layers = 2.0", "make_layer_stack.num_layers", 2),
    ("d_model = 32.0", "Unitransformer.d_model", 32),
    ("d_kv = 8.0", "SelfAttention.key_value_size", 8),
    ("run.keep_checkpoint_max = 2.0", "run.keep_checkpoint_max", 2),
    ("run.eval_checkpoint_step = [1e2, 200]", "run.eval_checkpoint_step",
     [100, 200]),
    ("MoE2D.expert_x = 2.0", "MoE2D.expert_x", 2),
    ("wide/EncDecAttention.num_heads = 2.0",
     "wide/EncDecAttention.num_heads", 2),
    ("BeamSearch.beam_size = 2.0", "BeamSearch.beam_size", 2),
    ("text_dataset.shuffle_seed = 1.0", "text_dataset.shuffle_seed", 1),
    ("train_model.steps_per_record = 5.0", "train_model.steps_per_record", 5),
])
def test_a_float_that_means_an_integer_is_one(binding, parameter, meant):
  parse(binding)
  scope, _, rest = parameter.rpartition("/")
  name, _, argument = rest.rpartition(".")
  with gin.config_scope(scope or None):
    found = gin.get_bindings(name)[argument]
  # Not only equal: 2 == 2.0.
  assert repr(found) == repr(meant)


def test_the_model_of_floats_is_that_of_integers():
  parse("num_layers = 1", "d_model = 16")
  expected = ConfiguredModel.from_gin().variables
  parse("num_layers = 1.0", "d_model = 16.0")
  assert ConfiguredModel.from_gin().variables == expected


@pytest.mark.parametrize("binding, said", [
    ("run.train_steps = 1.5", "run.train_steps = 1.5 must be a positive int"),
    ("run.train_steps = '10'", "run.train_steps = '10' must be a positive int"),
    ("run.train_steps = None", "run.train_steps = None must be a positive int"),
    ("run.train_steps = True", "run.train_steps = True must be a positive int"),
    ("run.train_steps = -1", "run.train_steps = -1 must be a positive int"),
    ("run.train_steps = 1e400", "run.train_steps = inf must be a positive int"),
    ("run.save_checkpoints_steps = 0", "run.save_checkpoints_steps = 0 must"),
    ("run.keep_checkpoint_max = -1", r"= -1 must be an integer of 0 or more"),
    ("run.perplexity_eval_steps = '3'", "perplexity_eval_steps = '3' must be"),
    ("batch_size = 4.5", "run.batch_size = 4.5, the macro batch_size, must"),
    ("batch_size = None", "run.batch_size = None, the macro batch_size, must"),
    ("run.batch_size = ('tokens', 9)", r"run.batch_size = \('tokens', 9\) mus"),
    ("run.sequence_length = {'inputs': '9'}", "sequence_length = .*positive"),
    ("num_layers = 2.5", "num_layers = 2.5, the macro num_layers, must be"),
    ("d_model = '32'", "Unitransformer.d_model = '32', the macro d_model, mus"),
    ("run.learning_rate_schedule = -0.1", "schedule = -0.1 must be a number o"),
    ("run.learning_rate_schedule = [1e400]", r"schedule = \[inf\] must be a n"),
    ("constant_learning_rate.learning_rate = -1", "= -1 must be a number of 0"),
    ("run.eval_checkpoint_step = 'last'", "step = 'last' must be a step, a li"),
    ("MoE2D.z_loss = '0.1'", "MoE2D.z_loss = '0.1' must be a number"),
    ("dropout_rate = 1.0", "dropout_rate = 1.0, the macro dropout_rate, must"),
    ("BeamSearch.alpha = '1'", "BeamSearch.alpha = '1' must be a number of 0"),
    ("text_dataset.shuffle_seed = 'a'", "shuffle_seed = 'a' must be an intege"),
    ("train_model.max_minutes = 0", "max_minutes = 0 must be a number above 0"),
    ("get_variable_dtype.slice_dtype = 'float23'", "'float23' is no type of n"),
    ("get_variable_dtype.slice_dtype = 'string'", "'string' is no type of num"),
    ("run.model_type = 'ml'", "run.model_type = 'ml' is not known.*'delimited"),
    ("SelfAttention.relative_attention_type = 'a'", "type = 'a' is not known"),
    ("make_layer_stack.layers = []", r"layers = \[\] must be a list of refer"),
    ("run.vocabulary = 'bytes'", "run.vocabulary = 'bytes' must be a refere"),
    ("run.sequence_length = {'inputs': 9}", "has no 'targets': add its l"),
    ("run.sequence_length = {'inputs': @value_kinds_test.length()}",
     "has no 'targets': add its length, such as 'targets': 128"),
    ("run.sequence_length = {'targets': @value_kinds_test.length(), 'inputs': "
     "0}", "{'inputs': 0}: write positive integers"),
    ("run.sequence_length = {}", "= {} has no 'targets'"),
    ("run.sequence_length = {'targets': 9, 2: 9}", "has {2: 9}: write positi"),
    ("run.sequence_length = {'targets': 'a'}", "has {'targets': 'a'}: write p"),
    ("run.mesh_devices = 3", "run.mesh_devices = 3 must be a list with the na"),
    ("run.mesh_devices = 'cpu:0'", "run.mesh_devices = 'cpu:0' must be a list"),
    ("run.mesh_devices = ['blah']", r"devices = \['blah'\] must be a list wit"),
    ("infer_model.checkpoint_paths = 'a'", "paths = 'a' must be a list of che"),
    ("infer_model.checkpoint_paths = 3", "paths = 3 must be a list of checkpo"),
    ("infer_model.checkpoint_paths = [3]", r"paths = \[3\] must be a list of"),
    ("infer_model.decode_fn = None", "fn = None must be a reference, such as "
     "@decode_from_file"),
    ("run.train_model_fn = 'a'", "fn = 'a' must be a reference, such as @trai"),
    ("make_layer_stack.layer_stack_cls = None", "None must be a ref.*@LayerSt"),
    ("run.train_dataset_fn = 'text'", "fn = 'text' must be a reference, such "
     "as @mtf_moe.text_dataset, or None"),
    ("run.train_dataset_fn = @mtf_moe.MoE2D", "makes no data set .*sequence_l"),
    ("run.eval_dataset_fn = @linear_warmup", "makes no data set .*sequence_l"),
    ("run.predict_fn = 'beam'", "'beam' must be a ref.*BeamSearch.*, or None"),
    ("text_dataset.files = 'a.txt'", "must be a ref.*@mtf_moe.TextFiles.., or"),
    ("Unitransformer.loss_fn = 'x'", "Unitransformer.loss_fn = 'x' must be a "),
    ("Unitransformer.loss_fn = @mtf_moe.MoE2D", "loss_fn = @mtf_moe.MoE2D is a "
     "class: give a function, such as @adaptive_softmax.*, or None"),
    ("decoder/Unitransformer.loss_fn = @mtf_moe.TextFiles", "is a class: give"),
    ("Unitransformer.loss_fn = @linear_warmup", "computes no loss .*: give a fu"
     "nction of model, context, logits, targets, output_vocab_dim, such as"),
    ("infer_model.decode_fn = @mtf_moe.MoE2D", "is a class: give a function, su"
     "ch as @decode_from_file"),
    ("linear_decay.steps_or_fraction = 0", "must be a number above 0"),
    ("linear_decay.steps_or_fraction = -1", "must be a number above 0"),
    ("make_layer_stack.layers = [@mtf_moe.MoE2D, @mtf_moe.ByteVocabulary]",
     "ByteVocabulary.* must be a list of references to layers"),
    ("make_layer_stack.layers = [@mtf_moe.MoE2D, @mtf_moe.text_dataset]",
     "text_dataset.* must be a list of references to layers"),
    ("make_layer_stack.layers = [['a', {}]]", "must be a list of references"),
    ("get_variable_dtype.activation_dtype = 'float16'", "'float16' is no type"),
    ("get_variable_dtype.activation_dtype = 'float8_e5m2'", "5m2' is no type"),
    ("get_variable_dtype.master_dtype = 'int32'", "'int32' is no type"),
    ("run.optimizer = 'adam'", "run.optimizer = 'adam' must be a reference"),
])
def test_other_values_are_refused(binding, said):
  with pytest.raises(ValueError, match=said):
    parse(binding)


@pytest.mark.parametrize("name", [
    "MoE2D.use_second_place_loss", "MoE2D.summaries", "MoE2D.dropless_eval",
    "TextFiles.allow_short_files", "set_aside_damaged.enabled",
    "evaluate.with_dropless", "run.skip_seen_data", "run.autostack",
    "Unitransformer.positional_embedding", "encoder/Unitransformer."
    "shared_embedding_and_softmax_weights", "LayerStack.recompute_grads",
    "tpu_estimator_model_fn.tpu_summaries"])
@pytest.mark.parametrize("value", ["'no'", "'False'", "0", "None"])
def test_switches_are_on_or_off(name, value):
  with pytest.raises(ValueError, match=(
      f"{name} = {value} is neither on nor off: set it to True or False")):
    parse(f"{name} = {value}")


@pytest.mark.parametrize("binding, said", [
    ("run.vocabulary = @mtf_moe.ByteVocabulary", "not called: write it with p"),
    ("run.perplexity_eval_steps = @mtf_moe.held_out_steps", "is not called"),
    ("run.predict_fn = @mtf_moe.BeamSearch", r"write .*@mtf_moe.BeamSearch\("),
    ("run.optimizer = @optimize.AdafactorOptimizer()", "without parentheses, "
     "@optimize.AdafactorOptimizer"),
    ("run.train_dataset_fn = @mtf_moe.text_dataset()", "without parentheses"),
    ("run.vocabulary = @mtf_moe.TextFiles()", "another kind: .*'encode'"),
    ("run.vocabulary = (@mtf_moe.ByteVocabulary(), @mtf_moe.TextFiles())",
     "another kind: .*'encode'"),
    ("text_dataset.files = @mtf_moe.ByteVocabulary()", "kind: .*'read'"),
    ("run.optimizer = @mtf_moe.MoE2D", "another kind: .*'apply_grads', as @op"),
    ("text_dataset.files = @mtf_moe.TextFiles", r"with .*mtf_moe.TextFiles\("),
    ("make_layer_stack.layers = [@mtf_moe.MoE2D()]", "without parentheses"),
    ("Unitransformer.loss_fn = @mtf_moe.MoE2D()", "without parentheses"),
])
def test_parentheses(binding, said):
  with pytest.raises(ValueError, match=said):
    parse(binding)


@pytest.mark.parametrize("binding", [
    "run.train_steps = @auto_train_steps", "run.keep_checkpoint_max = None",
    "run.learning_rate_schedule = [0.1, @linear_warmup, 2]",
    "Unitransformer.loss_fn = @adaptive_softmax_loss_fn",
    "Unitransformer.loss_fn = @value_kinds_test.loss",
    "MoE2D.experts = @value_kinds_test.loss",
    "linear_decay.steps_or_fraction = 1e-3",
    "linear_warmup.steps_or_fraction = 0.05", "run.sequence_length = None",
    "run.sequence_length = {'targets': @value_kinds_test.length()}",
    "run.batch_size = ('tokens_per_batch', @value_kinds_test.length())",
    "run.sequence_length = {'targets': 8}", "run.mesh_devices = ['', 'cpu:0']",
    "text_dataset.files = @mtf_moe.TextFiles()", "run.eval_dataset_fn = None",
    "make_layer_stack.layers = [[@mtf_moe.MoE2D, 'a', {'hidden_size': 8}]]",
    "infer_model.checkpoint_paths = ['a/model.ckpt-3']",
    "run.predict_fn = @mtf_moe.BeamSearch()",
    "run.eval_checkpoint_step = 'all'", "run.export_checkpoint_step = -1",
    "tpu_estimator_model_fn.outer_batch_size = None", "MoE2D.z_loss = 0.1",
    "serialize_num_microbatches.tokens_per_microbatch_per_replica = None",
    "AdafactorOptimizer.clipping_threshold = None", "train_model.seed = -3",
    "SelfAttention.num_memory_heads = 0", "text_dataset.shuffle_seed = None",
    "Bitransformer.decode.beam_size = 4",
    "sample_autoregressive.sampling_keep_top_k = -1",
    "sample_autoregressive.temperature = 0", "TextFiles.held_out = '20*'",
    "get_variable_dtype.activation_dtype = 'bfloat16'",
])
def test_what_is_allowed(binding):
  parse(binding)
