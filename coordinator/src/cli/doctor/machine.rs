//! Disk and memory.

use super::Check;
use crate::cli::home::Home;
use crate::cli::output::size;
use obelysk_model::validate::{DEFAULT_RATE, Needs};
use obelysk_node::machine;
use std::path::Path;

/// Below this, weights of any model but a toy find no place.
const ROOM: u64 = 1 << 30;
/// Tokens for which memory is estimated, as `model validate` does.
const TOKENS: usize = 128;

/// The folder itself, or where it will be.
fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"))
}

/// Free space for models.
pub fn space(root: &Path) -> Check {
    let there = nearest(root);
    match obelysk_model::fetch::space::free(there) {
        Ok(free) if free >= ROOM => Check::passed("disk", format_args!("{} free at {}", size(free), there.display())),
        Ok(free) => {
            let detail = format!("{} free at {}", size(free), there.display());
            Check::failed("disk", detail, "free some, or put the home folder on another disk (`--home`)")
        }
        Err(error) => {
            let detail = format!("free space at {} cannot be asked: {error}", there.display());
            Check::failed("disk", detail, "check that the disk is mounted")
        }
    }
}

/// Whether an identity could be kept: tried with a file that has no name and is gone at once.
pub fn writable(state: &Path) -> Check {
    let there = nearest(state);
    match tempfile::tempfile_in(there) {
        Ok(_) => Check::passed("writable", there.display()),
        Err(error) => {
            let remedy = "check owner, mode and mount of the folder, or pass another --state";
            Check::failed("writable", format_args!("{}: {error}", there.display()), remedy)
        }
    }
}

/// This machine's memory against the largest segment of each model. Without models there is nothing to hold it against.
pub fn memory(home: &Home, models: &[String]) -> Vec<Check> {
    let names = if models.is_empty() { home.names() } else { models.to_vec() };
    names.iter().map(|name| model(home, name, machine::memory())).collect()
}

fn model(home: &Home, name: &str, memory: machine::Memory) -> Check {
    let title = format!("memory for {name}");
    let folder = match home.open(name) {
        Ok(folder) => folder,
        Err(failure) => return Check::failed(title, failure.error, "register the model again, or name others with --model"),
    };
    let d = &folder.registered.descriptor;
    match Needs::estimate(d, d.layer_count() as u64, TOKENS.min(d.positions() as usize), DEFAULT_RATE) {
        Ok(needs) => fits(title, needs.memory_bytes, memory),
        Err(error) => Check::failed(title, error, "register the model again with this release"),
    }
}

fn fits(title: String, needed: u64, memory: machine::Memory) -> Check {
    if memory.total == 0 {
        return Check::warned(title, "this system does not tell how much memory there is", "see to it that it is enough");
    }
    let (needed_text, total, free) = (size(needed), size(memory.total), size(memory.free));
    let detail = format!("its largest segment takes about {needed_text} at {TOKENS} tokens; {free} of {total} are free");
    if needed > memory.total {
        let remedy = "this machine would be given none of it: use one with more memory, or offer it smaller models (`--model`)";
        Check::failed(title, detail, remedy)
    } else if needed > memory.free {
        Check::warned(title, detail, "end other processes before work starts, or the system may end this one")
    } else {
        Check::passed(title, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Outcome;

    #[test]
    fn memory_is_held_against_the_need() {
        let of = |needed, total, free| fits("m".to_owned(), needed, machine::Memory { total, free }).outcome;
        assert_eq!(of(10, 20, 15), Outcome::Passed);
        assert_eq!(of(18, 20, 15), Outcome::Warned);
        assert_eq!(of(21, 20, 15), Outcome::Failed);
        assert_eq!(of(21, 0, 0), Outcome::Warned);
    }

    #[test]
    fn a_folder_that_takes_no_file_is_found_out() {
        let place = tempfile::tempdir().expect("folder");
        assert_eq!(writable(&place.path().join("a/b")).outcome, Outcome::Passed);
        assert_eq!(writable(Path::new("/proc/1")).outcome, Outcome::Failed);
    }
}
