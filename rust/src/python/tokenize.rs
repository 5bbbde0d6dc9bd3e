//! The tokenizers in Python: `varalign._core.CaptionTokenizer`.

use numpy::{PyReadwriteArray1, PyReadwriteArray2, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyUnicodeEncodeError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::arguments::{elements_mut, natural};
use crate::error::{Error, Result};
use crate::memory;
use crate::tokenize::{build_vocabulary, Clean, Input, TokenId, Tokenizer};

/// The caller's array of token ids, int64 or int32.
#[derive(FromPyObject)]
enum Ids<'py> {
    Long(PyReadwriteArray2<'py, i64>),
    Int(PyReadwriteArray2<'py, i32>),
}

/// A tokenizer over one vocabulary, which threads may share. `varalign.data.tokens.tokenizers` is its public interface.
#[pyclass(frozen, module = "varalign._core")]
struct CaptionTokenizer {
    tokenizer: Tokenizer,
}

#[pymethods]
impl CaptionTokenizer {
    /// CLIP's byte-pair encoding from the text of a vocabulary file.
    #[staticmethod]
    fn clip(py: Python<'_>, vocabulary: &str) -> PyResult<Self> {
        Ok(Self {
            tokenizer: py.detach(|| Tokenizer::clip(vocabulary))?,
        })
    }

    /// BERT's WordPiece from the text of a vocabulary file with one entry per line; marks are start, end, padding,
    /// unknown.
    #[staticmethod]
    #[pyo3(signature = (vocabulary, marks, special, *, lower, strip_accents, split_chinese))]
    fn bert(
        py: Python<'_>,
        vocabulary: &str,
        marks: (String, String, String, String),
        special: Vec<String>,
        lower: bool,
        strip_accents: bool,
        split_chinese: bool,
    ) -> PyResult<Self> {
        let clean = Clean {
            lower,
            strip_accents,
            split_chinese,
            compose: false,
        };
        let marks = [
            marks.0.as_str(),
            marks.1.as_str(),
            marks.2.as_str(),
            marks.3.as_str(),
        ];
        let special: Vec<&str> = special.iter().map(String::as_str).collect();
        let entries = lines(vocabulary)?;
        Ok(Self {
            tokenizer: py.detach(|| Tokenizer::bert(&entries, marks, &special, clean))?,
        })
    }

    /// Whole words from a text with one word per line; the first has id 4.
    #[staticmethod]
    fn words(vocabulary: &str) -> PyResult<Self> {
        let words = if vocabulary.is_empty() {
            Vec::new()
        } else {
            lines(vocabulary)?
        };
        Ok(Self {
            tokenizer: Tokenizer::words(&words)?,
        })
    }

    #[getter]
    fn vocabulary_size(&self) -> usize {
        self.tokenizer.vocabulary_size()
    }

    /// The ids of the start mark, the end mark and the padding.
    #[getter]
    fn marks(&self) -> (u32, u32, u32) {
        self.tokenizer.marks()
    }

    /// Encode texts into the rows of `ids` and write `lengths`; returns the rows that must be repaired first.
    fn encode(
        &self,
        texts: &Bound<'_, PyTuple>,
        ids: Ids<'_>,
        lengths: PyReadwriteArray1<'_, i64>,
        threads: i128,
    ) -> PyResult<Vec<usize>> {
        self.encode_input(texts, Input::Texts, ids, lengths, threads)
    }

    /// Encode texts that are repaired and cut into words, one word per line (CLIP).
    fn encode_pieces(
        &self,
        texts: &Bound<'_, PyTuple>,
        ids: Ids<'_>,
        lengths: PyReadwriteArray1<'_, i64>,
        threads: i128,
    ) -> PyResult<Vec<usize>> {
        self.encode_input(texts, Input::Pieces, ids, lengths, threads)
    }
}

impl CaptionTokenizer {
    fn encode_input(
        &self,
        texts: &Bound<'_, PyTuple>,
        input: Input,
        ids: Ids<'_>,
        lengths: PyReadwriteArray1<'_, i64>,
        threads: i128,
    ) -> PyResult<Vec<usize>> {
        let threads = natural("threads", threads)?;
        match ids {
            Ids::Long(ids) => self.encode_into(texts, input, ids, lengths, threads),
            Ids::Int(ids) => self.encode_into(texts, input, ids, lengths, threads),
        }
    }

    fn encode_into<T: TokenId + numpy::Element>(
        &self,
        texts: &Bound<'_, PyTuple>,
        input: Input,
        mut ids: PyReadwriteArray2<'_, T>,
        mut lengths: PyReadwriteArray1<'_, i64>,
        threads: usize,
    ) -> PyResult<Vec<usize>> {
        if ids.shape()[0] != texts.len() {
            let message = format!(
                "{} texts need ids of as many rows, got {}",
                texts.len(),
                ids.shape()[0]
            );
            return Err(Error::Value(message).into());
        }
        // Borrowing without the GIL is sound: the tuple keeps every string alive, and strings are immutable.
        let borrowed = borrow_texts(texts)?;
        let (ids, lengths) = (
            elements_mut("ids", &mut ids)?,
            elements_mut("lengths", &mut lengths)?,
        );
        let encode = || -> Result<Vec<usize>> {
            self.tokenizer
                .encode(&borrowed, input, ids, lengths, threads)
        };
        Ok(texts.py().detach(encode)?)
    }
}

/// The lines of a vocabulary file.
fn lines(text: &str) -> Result<Vec<&str>> {
    let mut lines = Vec::new();
    let count = memchr::memchr_iter(b'\n', text.as_bytes()).count() + 1;
    memory::reserve(&mut lines, count)?;
    lines.extend(text.split('\n'));
    Ok(lines)
}

/// The texts as UTF-8, without a copy if they are ASCII; None for a text with a lone surrogate, which has no UTF-8 form.
fn borrow_texts<'a>(texts: &'a Bound<'_, PyTuple>) -> PyResult<Vec<Option<&'a str>>> {
    let mut borrowed = Vec::new();
    memory::reserve(&mut borrowed, texts.len())?;
    for (index, text) in texts.iter_borrowed().enumerate() {
        match text.extract::<&'a str>() {
            Ok(text) => borrowed.push(Some(text)),
            Err(error) if error.is_instance_of::<PyUnicodeEncodeError>(texts.py()) => {
                borrowed.push(None)
            }
            Err(_) => {
                let kind = text.get_type().name()?;
                return Err(PyTypeError::new_err(format!(
                    "texts[{index}] must be a str, got {kind}"
                )));
            }
        }
    }
    Ok(borrowed)
}

/// The words of some texts that occur at least `min_count` times, the most frequent first, at most `max_words`.
#[pyfunction]
fn build_word_vocabulary(
    texts: &Bound<'_, PyTuple>,
    min_count: i128,
    max_words: i128,
) -> PyResult<Vec<String>> {
    let (min_count, max_words) = (
        natural("min_count", min_count)?,
        natural("max_words", max_words)?,
    );
    let borrowed = borrow_texts(texts)?;
    Ok(texts
        .py()
        .detach(|| build_vocabulary(&borrowed, min_count, max_words))?)
}

/// Add the tokenizers to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<CaptionTokenizer>()?;
    module.add_function(wrap_pyfunction!(build_word_vocabulary, module)?)
}
