//! When a machine is about to be taken away: asked of a command, at an interval, with a time limit.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// Pause between two questions: the shortest notice of the large clouds is 30 s.
pub const POLL: Duration = Duration::from_secs(5);
/// How long one question may take: beyond, it counts as unanswered and its process is ended.
pub const ANSWER: Duration = Duration::from_secs(4);

/// Completes when `hook`, run by the shell, exits with 0. A hook that fails, hangs or cannot be started is asked again: it is no notice.
pub async fn notice(hook: &str) {
    loop {
        if asked(hook, ANSWER).await {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn asked(hook: &str, limit: Duration) -> bool {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(hook).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            tracing::warn!(%error, "the preemption hook cannot be started; asked again later");
            return false;
        }
    };
    match tokio::time::timeout(limit, child.wait()).await {
        Ok(Ok(status)) => status.success(),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the preemption hook was lost; asked again later");
            false
        }
        Err(_) => {
            tracing::warn!(limit_s = limit.as_secs(), "the preemption hook did not answer in time; asked again later");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_success_is_a_notice() {
        assert!(asked("true", ANSWER).await);
        assert!(!asked("false", ANSWER).await);
        assert!(!asked("exit 7", ANSWER).await);
        let started = std::time::Instant::now();
        assert!(!asked("sleep 60", Duration::from_millis(100)).await);
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}
