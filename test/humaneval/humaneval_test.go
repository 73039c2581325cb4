package main

import (
	"errors"
	"io/fs"
	"os"
	"testing"

	"github.com/paddockvm/paddock/test/harness"
)

// TestSubset runs the first tasks, right and broken, through real machines; `make humaneval` runs them all.
func TestSubset(t *testing.T) {
	if _, err := harness.Binary(); err != nil {
		if os.Getenv("REQUIRE_QEMU") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	s, err := run(t.Context(), options{tasks: 8, width: 4})
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("the tasks are not here:", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.print(os.Stderr)
	if !s.ok() {
		t.Errorf("%d of %d right ones passed, %d of %d broken ones failed", s.count(true), s.tasks, s.count(false), s.tasks)
	}
}
