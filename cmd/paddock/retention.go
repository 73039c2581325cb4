package main

import (
	"time"

	"github.com/spf13/pflag"

	"github.com/paddockvm/paddock/images"
)

// retentionConfig is what a worker can be told of the snapshots that its host keeps. It is a part of config.
type retentionConfig struct {
	SnapshotKeep       int           `koanf:"snapshot_keep"`
	SnapshotMaxAge     time.Duration `koanf:"snapshot_max_age"`
	SnapshotMaxMiB     int           `koanf:"snapshot_max_mib"`
	SnapshotKeepTagged bool          `koanf:"snapshot_keep_tagged"`
}

func addRetentionFlags(f *pflag.FlagSet) {
	f.Int("snapshot-keep", 0, "snapshots of each tenant that stay on this host, the newest; 0 is no bound")
	f.Duration("snapshot-max-age", 0, "how old a snapshot may become, an hour at least; 0 is no bound")
	f.Int("snapshot-max-mib", 0, "what all snapshots of this host may take on its disk, in MiB: the oldest go first; 0 is no bound")
	f.Bool("snapshot-keep-tagged", false, "keep those with a tag, whatever the three above say")
}

// leastSnapshotAge is no shorter than the pause between two looks.
const leastSnapshotAge = time.Hour

// policy says which snapshots go; nothing is asked for where nothing is configured.
func (c retentionConfig) policy() images.Policy {
	return images.Policy{
		Keep: c.SnapshotKeep, MaxAge: c.SnapshotMaxAge, MaxBytes: int64(min(c.SnapshotMaxMiB, 1<<40)) << 20, KeepTagged: c.SnapshotKeepTagged,
	}
}
