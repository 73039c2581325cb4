package sqlite_test

import (
	"bytes"
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/paddockvm/paddock/dispatcher/ledger/sqlite"
)

// TestOpenRefuses: what cannot be a ledger is an error that names the file and the reason.
func TestOpenRefuses(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(t *testing.T, file string)
		want    string
		keeps   bool // the file, byte for byte
	}{
		{"no database", func(t *testing.T, file string) { write(t, file, bytes.Repeat([]byte("no database\n"), 1000)) }, "not a database", true},
		{"another program's database", func(t *testing.T, file string) { execute(t, file, `CREATE TABLE jobs (id TEXT)`) }, "jobs", false},
		{"a directory", func(t *testing.T, file string) { mkdir(t, file) }, "", false},
		{
			"a newer schema",
			func(t *testing.T, file string) {
				s, err := sqlite.Open(t.Context(), file)
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				execute(t, file, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (9000, 1)`)
			},
			"newer", true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "ledger.db")
			tt.prepare(t, file)
			before, _ := os.ReadFile(file)
			refused(t, file, tt.want)
			if after, _ := os.ReadFile(file); tt.keeps && !bytes.Equal(before, after) {
				t.Error("the file was changed")
			}
			refused(t, file, tt.want) // the same again: the lock was given back
		})
	}
}

func refused(t *testing.T, file, want string) {
	t.Helper()
	s, err := sqlite.Open(t.Context(), file)
	if err == nil {
		s.Close()
		t.Fatal("opened")
	}
	if !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), want) {
		t.Errorf("error %q must name the file and say %q", err, want)
	}
	t.Log(err)
}

func write(t *testing.T, file string, b []byte) {
	t.Helper()
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}

func execute(t *testing.T, file, query string) {
	t.Helper()
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(query); err != nil {
		t.Fatal(err)
	}
}

func TestOpenReadOnlyDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "ledger.db")
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		if os.Geteuid() == 0 { // root may write anywhere: be somebody else, on this thread, which ends with the goroutine
			runtime.LockOSThread()
			if chmod := os.Chmod(filepath.Dir(dir), 0o755); chmod != nil {
				t.Error(chmod)
			}
			if setfsuid := syscall.Setfsuid(65534); setfsuid != nil {
				t.Error(setfsuid)
			}
		}
		var s *sqlite.Store
		if s, err = sqlite.Open(context.WithoutCancel(t.Context()), file); err == nil {
			s.Close()
		}
	}()
	<-done
	if err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("error %v, want one that names the file and the permission", err)
	}
}

func TestOpenTwice(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ledger.db")
	s, err := sqlite.Open(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, file, "another dispatcher has it")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error("close again:", err)
	}
	if s, err = sqlite.Open(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestOpenMakes: the directory is made, and a path is a path, whatever a URL would make of it.
func TestOpenMakes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a ?b#c%20d&e", "ü")
	s, err := sqlite.Open(t.Context(), filepath.Join(dir, "ledger?x=1.db"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Register(t.Context(), "a", time.Now()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "ledger?x=1.db")); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestClosed: after Close everything is an error, and nothing waits.
func TestClosed(t *testing.T) {
	s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "ledger.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Register(t.Context(), "a", time.Now()); err == nil {
		t.Error("registered")
	}
	if _, err := s.Workers(t.Context()); err == nil {
		t.Error("read")
	}
}
