package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A bound that is none would let everybody do everything.
func TestReadQuotasRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "quotas.yaml")
	for _, text := range []string{"per_second: .nan", "per_second: .inf", "per_second: -1", "queued: -1"} {
		if err := os.WriteFile(file, []byte("default: {"+text+"}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readQuotas(file); err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "default: ") {
			t.Errorf("%s: got %v", text, err)
		}
	}
}
