# Nodes as a Nomad job. The token lies in a Nomad variable, which only this job may read:
#   nomad var put nomad/jobs/obelysk-node token=$(obelysk token create --uses 3 --json | jq -r .token)
#   nomad job run deploy/nomad/node.nomad.hcl
job "obelysk-node" {
  type = "service"

  group "node" {
    count = 3

    # Two nodes on one machine share its cores.
    constraint {
      operator = "distinct_hosts"
      value    = "true"
    }

    # Registered models, written once on each client by `obelysk model register`; declared in the client's configuration.
    volume "models" {
      type      = "host"
      source    = "obelysk-models"
      read_only = true
    }

    # Key and certificate, so that a restarted allocation comes back without a token.
    ephemeral_disk {
      size   = 300
      sticky = true
    }

    task "node" {
      driver = "docker"

      # SIGTERM drains: the work in progress is finished and delivered first. The client's max_kill_timeout must allow it.
      kill_signal  = "SIGTERM"
      kill_timeout = "30m"

      config {
        image = "registry.example/obelysk:0.1.0"
        args  = ["node", "join", "--name", "${NOMAD_ALLOC_NAME}", "--state", "${NOMAD_ALLOC_DIR}/data/node"]
      }

      env {
        OBELYSK_HOME = "/var/lib/obelysk"
      }

      volume_mount {
        volume      = "models"
        destination = "/var/lib/obelysk/models"
        read_only   = true
      }

      template {
        data        = <<-EOT
          OBELYSK_TOKEN={{ with nomadVar "nomad/jobs/obelysk-node" }}{{ .token }}{{ end }}
        EOT
        destination = "secrets/token.env"
        env         = true
        # Nodes have joined: a new token is for the next ones.
        change_mode = "noop"
      }

      resources {
        cores  = 4
        memory = 16384
      }
    }
  }
}
