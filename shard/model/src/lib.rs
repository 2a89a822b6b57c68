//! From a Hugging Face folder to the integer model that is proven.
