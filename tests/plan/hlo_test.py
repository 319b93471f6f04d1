"""Collectives are found in what the TPU compiler writes."""

import pytest

from mtf_moe.plan import hlo

MESH = {"outer": 2, "batch": 2}

# Compiled for v5e:2x2 by libtpu 0.0.48.1; instructions that are of no interest
# here, layouts and metadata are cut away. Three times around the loop, then an
# exchange that is started and awaited, and one of everything else.
MODULE = """HloModule jit_f, is_scheduled=true, num_partitions=4

%fused_computation.2 (p.0: bf16[2,512,512], p.1: bf16[512,512]) -> bf16[2,512,512] {
  %p.0 = bf16[2,512,512]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %p.1 = bf16[512,512]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %convolution.12 = bf16[2,512,512]{2,1,0:T(8,128)(2,1)S(1)} convolution(%p.0, %p.1), window={size=1}, dim_labels=0bf_io0->0bf
}

%body (param: (s32[], bf16[2,512,512], bf16[512,512], s32[])) -> (s32[], bf16[2,512,512], bf16[512,512], s32[]) {
  %one = s32[]{:T(128)} constant(1)
  %param = (s32[]{:T(128)}, bf16[2,512,512]{2,1,0:T(8,128)(2,1)S(1)}, bf16[512,512]{1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}) parameter(0)
  %w = bf16[512,512]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%param), index=2
  %x = bf16[2,512,512]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%param), index=1
  %fusion.20 = bf16[2,512,512]{2,1,0:T(8,128)(2,1)S(1)} fusion(%x, %w), kind=kOutput, calls=%fused_computation.2
  %all_to_all.4 = bf16[2,512,512]{2,1,0:T(8,128)(2,1)S(1)} all-to-all(%fusion.20), channel_id=1, replica_groups={{0,1},{2,3}}, dimensions={0}
  %i = s32[]{:T(128)} get-tuple-element(%param), index=0
  %add.11 = s32[]{:T(128)} add(%i, %one)
  %limit = s32[]{:T(128)} get-tuple-element(%param), index=3
  ROOT %tuple.22 = (s32[]{:T(128)}, bf16[2,512,512]{2,1,0:T(8,128)(2,1)S(1)}, bf16[512,512]{1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}) tuple(%add.11, %all_to_all.4, %w, %limit)
}

%condition (param.1: (s32[], bf16[2,512,512], bf16[512,512], s32[])) -> pred[] {
  %three = s32[]{:T(128)} constant(3)
  %param.1 = (s32[]{:T(128)}, bf16[2,512,512]{2,1,0:T(8,128)(2,1)S(1)}, bf16[512,512]{1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%param.1), index=0
  ROOT %lt.3 = pred[]{:T(512)} compare(%i.1, %three), direction=LT
}

%sum (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[]{:T(256)} parameter(0)
  %b = bf16[]{:T(256)} parameter(1)
  ROOT %add.2 = bf16[]{:T(256)} add(%a, %b)
}

ENTRY %main.0_spmd (param.4: bf16[2,512,512], param.5: bf16[512,512]) -> (bf16[2,512,512], bf16[1024,512]) {
  %copy-start = (bf16[512,512]{1,0:T(8,128)(2,1)S(1)}, bf16[512,512]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%param.5)
  %copy-done = bf16[512,512]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %while.10 = (s32[]{:T(128)}, bf16[2,512,512]{2,1,0:T(8,128)(2,1)S(1)}, bf16[512,512]{1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}) while(%tuple.26), condition=%condition, body=%body
  %y = bf16[2,512,512]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%while.10), index=1
  %collective-permute-start = (bf16[2,512,512]{2,1,0:T(8,128)(2,1)S(1)}, bf16[2,512,512]{2,1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%y), channel_id=1, source_target_pairs={{0,2},{2,0},{1,3},{3,1}}
  %w.1 = bf16[512,512]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%while.10), index=2
  %all-gather.5 = bf16[1024,512]{1,0:T(8,128)(2,1)S(1)} all-gather(%w.1), channel_id=2, replica_groups=mesh['outer'=2,'batch'=2] {'outer'}, dimensions={0}, use_global_device_ids=true
  %collective-permute-done = bf16[2,512,512]{2,1,0:T(8,128)(2,1)S(1)} collective-permute-done(%collective-permute-start)
  %fusion.21 = bf16[2,512,512]{2,1,0:T(8,128)(2,1)S(1)} fusion(%collective-permute-done, %w.1), kind=kOutput, calls=%fused_computation.2
  %psum.7 = (bf16[2,512,512]{2,1,0:T(8,128)(2,1)}, f32[]{:T(128)}) all-reduce(%fusion.21, %loss), channel_id=3, replica_groups=[1,4]<=[4], use_global_device_ids=true, to_apply=%sum
  ROOT %tuple.24 = (bf16[2,512,512]{2,1,0:T(8,128)(2,1)}, bf16[1024,512]{1,0:T(8,128)(2,1)}) tuple(%psum.7, %all-gather.5)
}
"""  # noqa: E501

MIB = 2 * 512 * 512 * 2  # Of bfloat16.
LOOP = hlo.Kept("all-to-all", ("batch",), 3, MIB, False, 0)
EXCHANGE = hlo.Kept("collective-permute", ("outer",), 1, MIB, True, 0)
OTHERS = [hlo.Kept("all-gather", ("outer",), 1, MIB, False, 0),
          hlo.Kept("all-reduce", ("outer", "batch"), 1, MIB + 4, False, 0)]


def test_what_a_compiler_kept():
  assert hlo.collectives(MODULE, MESH) == [LOOP, EXCHANGE, *OTHERS]


def test_products_between_start_and_end():
  """One more, which does not need what is on its way."""
  done = "  %collective-permute-done ="
  other = ("  %fusion.22 = bf16[2,512,512] fusion(%y, %w.1), kind=kOutput, "
           "calls=%fused_computation.2\n")
  kept = hlo.collectives(MODULE.replace(done, other + done), MESH)
  assert kept[1] == hlo.Kept("collective-permute", ("outer",), 1, MIB, True, 1)
  kept = hlo.collectives(MODULE.replace(done, other * 2 + done), MESH)
  assert kept[1].products == 2


def test_a_collective_in_a_computation_of_its_own():
  """As async-start has it, and the fusions that hide a collective."""
  one = ("%wrapped (p: bf16[2,512,512]) -> bf16[2,512,512] {\n"
         "  %p = bf16[2,512,512] parameter(0)\n"
         "  ROOT %inner = bf16[2,512,512] all-to-all(%p), "
         "replica_groups={{0,2},{1,3}}, dimensions={0}\n}\n\n")
  pair = ("  %s.1 = ((bf16[2,512,512]), bf16[2,512,512]) async-start(%y), "
          "calls=%wrapped\n"
          "  %s.2 = bf16[2,512,512] async-done(%s.1)\n")
  text = MODULE.replace("ENTRY", one + "ENTRY").replace(
      "  ROOT %tuple.24", pair + "  ROOT %tuple.24")
  *_, last = hlo.collectives(text, MESH)
  assert last == hlo.Kept("all-to-all", ("outer",), 1, MIB, True, 0)


@pytest.mark.parametrize("groups, axes", [
    ("{{0,1},{2,3}}", ("batch",)), ("{{0,2},{1,3}}", ("outer",)),
    ("{{0,1,2,3}}", ("outer", "batch")), ("{}", ("outer", "batch")),
    ("[2,2]<=[4]", ("batch",)), ("[2,2]<=[2,2]T(1,0)", ("outer",)),
    ("mesh['outer'=2,'batch'=2] {'outer','batch'}", ("outer", "batch"))])
def test_groups(groups, axes):
  text = MODULE.replace("{{0,1},{2,3}}", groups)
  assert hlo.collectives(text, MESH)[0].axes == axes


@pytest.mark.parametrize("loop, times", [
    ("body=%body, backend_config={\"known_trip_count\":{\"n\":\"7\"}}", 7),
    ("body=%body", 3)])
def test_loops(loop, times):
  text = MODULE.replace("body=%body", loop)
  assert hlo.collectives(text, MESH)[0].times == times
