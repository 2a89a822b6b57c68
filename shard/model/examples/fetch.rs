//! Fetches a model and prints its digests: `fetch SOURCE DEST`.

use obelysk_model::fetch::{Hub, Source, fetch};
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (source, dest) = args.next().zip(args.next()).ok_or("usage: fetch SOURCE DEST")?;
    let record = fetch(&Source::parse(&source)?, Path::new(&dest), &Hub::from_env(), &mut |_| ())?;
    for file in record.files {
        println!("{}", serde_json::to_string(&file)?);
    }
    Ok(())
}
