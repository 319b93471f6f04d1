"""Another vocabulary of the same size, for what tells vocabularies apart."""

import gin

from mtf_moe.text import vocabulary

# Of a vocabulary that the files of data name.
BINDING = "vocabulary/gin.singleton.constructor = @ReversedVocabulary"


@gin.configurable(module="tests")
class ReversedVocabulary(vocabulary.ByteVocabulary):
  """That of bytes, with the ids the other way around."""

  def encode(self, s):
    return [258 + 3 - i for i in super().encode(s)]

  def decode(self, ids):
    return super().decode([258 + 3 - i for i in ids])
