package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddockvm/paddock/dispatcher/ledger/postgres"
	"github.com/paddockvm/paddock/dispatcher/ledger/sqlite"
	"github.com/paddockvm/paddock/dispatcher/ledger/sqlstore"
	"github.com/paddockvm/paddock/vmm/hostfile"
)

const ledgerUsage = "PostgreSQL database that keeps the ledger, as a URL: postgres://; empty keeps it in the state directory"

// openLedger opens the ledger that a URL names; without one that of the state directory.
func openLedger(ctx context.Context, url, stateDir string) (*sqlstore.Store, error) {
	switch {
	case url == "":
		return sqlite.Open(ctx, ledgerFile(stateDir))
	case strings.HasPrefix(url, "postgres://"), strings.HasPrefix(url, "postgresql://"):
		return postgres.Open(ctx, url)
	}
	return nil, errors.New("ledger: want postgres://USER@HOST/DATABASE, or nothing for a file in the state directory") // it may hold a password
}

func ledgerCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "ledger", Short: "Move the ledger from one database to another",
		Long: "The ledger is the truth about every job: docs/ledger.md. One in a file can be moved while no dispatcher has it open; of one in PostgreSQL\n" +
			"an export is of one moment, whoever works on it.",
	}
	c.AddCommand(ledgerExport(), ledgerImport())
	return c
}

// ledgerFlags say which ledger a command works on.
type ledgerFlags struct{ url, dir *string }

func addLedger(c *cobra.Command) ledgerFlags {
	return ledgerFlags{
		url: c.Flags().String("ledger", envOr("PADDOCK_LEDGER", ""), ledgerUsage+" (PADDOCK_LEDGER)"),
		dir: c.Flags().String("state-dir", envOr("PADDOCK_STATE_DIR", defaultStateDir()), "the state directory (PADDOCK_STATE_DIR)"),
	}
}

func (l ledgerFlags) open(ctx context.Context) (*sqlstore.Store, error) {
	return openLedger(ctx, *l.url, *l.dir)
}

// exists refuses a state directory without a ledger: opening it would make one, and an export of nothing looks as if it had gone well.
func (l ledgerFlags) exists() error {
	if *l.url != "" {
		return nil
	}
	if st, err := os.Stat(ledgerFile(*l.dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	} else if err != nil || st.Size() == 0 {
		return fmt.Errorf("there is no ledger in %s; say where it is with --state-dir, or --ledger (this command reads no configuration file)", *l.dir)
	}
	return nil
}

func ledgerFile(stateDir string) string { return filepath.Join(stateDir, "ledger.db") }

func ledgerExport() *cobra.Command {
	c := &cobra.Command{
		Use: "export FILE", Short: "Write all of the ledger as lines of JSON; - is standard output", Args: arguments(1, 1),
		Example: "  paddock ledger export ledger.jsonl\n  paddock ledger import --ledger postgres://paddock@db/paddock ledger.jsonl",
	}
	l := addLedger(c)
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		if err := l.exists(); err != nil {
			return err
		}
		store, err := l.open(c.Context())
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, store.Close()) }()
		if args[0] == "-" {
			return store.Export(c.Context(), c.OutOrStdout())
		}
		return exportTo(c.Context(), store, args[0])
	}
	return c
}

// exportTo writes a file that nobody else can read, and that is there, whatever happens then, when it is whole.
func exportTo(ctx context.Context, store *sqlstore.Store, file string) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".ledger-*")
	if err != nil {
		return err
	}
	err = store.Export(ctx, f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("export to %s: %w", file, err), os.Remove(f.Name()))
	}
	if err := hostfile.SyncDir(filepath.Dir(file)); err != nil {
		return fmt.Errorf("export to %s: %w", file, err)
	}
	return nil
}

// importTTL is how long an import that dies keeps dispatchers from leading.
const importTTL = time.Minute

func ledgerImport() *cobra.Command {
	c := &cobra.Command{Use: "import FILE", Short: "Read an export into an empty ledger; - is standard input", Args: arguments(1, 1)}
	l := addLedger(c)
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		in := c.InOrStdin()
		if args[0] != "-" {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			in = f
		}
		store, err := l.open(c.Context())
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, store.Close()) }()
		if _, err := store.Lead(c.Context(), "paddock ledger import", importTTL); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, store.Resign(c.Context())) }()
		if err := store.Import(c.Context(), in); err != nil {
			return fmt.Errorf("import %s: %w", args[0], err)
		}
		return nil
	}
	return c
}
