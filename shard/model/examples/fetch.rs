//! Fetches a model and prints its digests: `fetch SOURCE DEST`.

use obelysk_model::fetch::{Source, fetch};
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (source, dest) = args.next().zip(args.next()).ok_or("usage: fetch SOURCE DEST")?;
    for file in fetch(&Source::parse(&source)?, Path::new(&dest))? {
        println!("{}", serde_json::to_string(&file)?);
    }
    Ok(())
}
