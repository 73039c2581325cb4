package chaos

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// Config says what to run.
type Config struct {
	// Seed decides what the clients want and what is broken when. What the machine makes of it is not repeatable; the schedule is.
	Seed uint64
	// For is how long things are broken and jobs are submitted.
	For time.Duration
	// Jobs is how many are submitted in all, spread over For.
	Jobs int
	// Faults are names of classes (Classes lists them); empty breaks nothing.
	Faults []string
	// Width multiplies how many jobs of a tenant and of a concurrency key may run at once, and what workers have room for; 0 means 1. At 1 a
	// machine with two processors brings in some 15 jobs a second.
	Width int
	// AtOnce is how many faults there may be at one time, each on another process; 0 means 1.
	AtOnce int
	// Machines is how many of the jobs run in real machines; 0 is none. CanMachines tells whether they can.
	Machines int
	// Ledger is "sqlite", with one dispatcher, or "postgres", with two.
	Ledger string
	// Bin is the directory of paddock and paddock-agent, Images an image store that has "base".
	Bin, Images string
	// Stepped is the directory of BuildStepped's programs, for the class "clock".
	Stepped string
	// Dir is where everything is kept that the run writes; it must not exist. It is removed by who has made the run, where all was well.
	Dir string
	// Drain bounds how long the jobs may take to end once everything is whole; 0 means 3 minutes.
	Drain time.Duration
	// Log takes the schedule as it happens.
	Log io.Writer
}

// Classes gives the names of all classes of faults, sorted.
func Classes() []string { return slices.Sorted(maps.Keys(classes)) }

func (c *Config) check() error {
	for _, f := range c.Faults {
		if classes[f] == nil {
			return fmt.Errorf("no class of faults %q: there are %s", f, strings.Join(Classes(), ", "))
		}
	}
	if c.stepsClocks() && c.Stepped == "" {
		return errors.New("the class clock wants the programs of BuildStepped")
	}
	if c.Machines > 0 {
		if err := CanMachines(c.Images); err != nil {
			return err
		}
	}
	switch c.Ledger {
	case "":
		c.Ledger = ledgerSQLite
	case ledgerSQLite, ledgerPostgres:
	default:
		return fmt.Errorf("no ledger %q: there are %s and %s", c.Ledger, ledgerSQLite, ledgerPostgres)
	}
	if c.Drain == 0 {
		c.Drain = 3 * time.Minute
	}
	c.AtOnce, c.Width = max(1, c.AtOnce), max(1, c.Width)
	if c.Log == nil {
		c.Log = io.Discard
	}
	return nil
}

func (c *Config) stepsClocks() bool { return slices.Contains(c.Faults, "clock") }

// Names of ledgers.
const (
	ledgerSQLite   = "sqlite"
	ledgerPostgres = "postgres"
)
