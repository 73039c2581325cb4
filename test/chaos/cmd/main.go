// Command cmd runs test/chaos by hand, for as long as wanted:
//
//	go run ./test/chaos/cmd --for 10m --jobs 10000 --seed 7 --faults kill,pause --at-once 2
//
// It ends with 1 where an invariant does not hold; the logs stay then.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/paddockvm/paddock/test/chaos"
	"github.com/paddockvm/paddock/test/harness"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == chaos.NodeArg {
		exit(chaos.Node(os.Args[2:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	exit(err)
}

func exit(err error) {
	switch {
	case err == nil, errors.Is(err, pflag.ErrHelp):
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func run(ctx context.Context) error {
	cfg := chaos.Config{Log: os.Stderr}
	pflag.DurationVar(&cfg.For, "for", time.Minute, "how long things are broken and jobs submitted")
	pflag.IntVar(&cfg.Jobs, "jobs", 1000, "how many jobs are submitted meanwhile")
	pflag.Uint64Var(&cfg.Seed, "seed", uint64(time.Now().UnixNano()), "decides the jobs and the schedule")
	pflag.StringSliceVar(&cfg.Faults, "faults", chaos.Classes(), "classes of faults; empty breaks nothing")
	pflag.IntVar(&cfg.Width, "width", 1, "multiplies how many jobs of a tenant and of a key may run at once, and the workers' room")
	pflag.IntVar(&cfg.AtOnce, "at-once", 1, "how many faults there may be at one time")
	pflag.StringVar(&cfg.Ledger, "ledger", "sqlite", "sqlite, or postgres with two dispatchers")
	pflag.IntVar(&cfg.Machines, "machines", -1, "how many of the jobs run in real machines; -1 is one in a hundred where they can run here")
	pflag.DurationVar(&cfg.Drain, "drain", 3*time.Minute, "how long the jobs may take to end once everything is whole")
	pflag.Parse()
	bin, err := harness.Binary()
	if err != nil {
		return err
	}
	cache, err := harness.Cache()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "pc-")
	if err != nil {
		return err
	}
	cfg.Bin, cfg.Images, cfg.Dir = filepath.Dir(bin), filepath.Join(cache, "images"), filepath.Join(dir, "run")
	if cfg.Machines < 0 {
		if cfg.Machines = cfg.Jobs / 100; chaos.CanMachines(cfg.Images) != nil {
			cfg.Machines = 0
		}
	}
	if slices.Contains(cfg.Faults, "clock") {
		cfg.Stepped = filepath.Join(dir, "stepped")
		if err := chaos.BuildStepped(ctx, filepath.Join(cache, "stepped-clock"), cfg.Stepped); err != nil {
			return err
		}
	}
	r, err := chaos.Run(ctx, cfg)
	if err == nil {
		fmt.Println(r)
		if len(r.Wrong) == 0 {
			return os.RemoveAll(dir)
		}
		err = errors.New("invariants do not hold")
	}
	return fmt.Errorf("seed %d, faults %s, logs in %s/log: %w", cfg.Seed, strings.Join(cfg.Faults, ","), cfg.Dir, err)
}
