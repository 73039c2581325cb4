package e2e

import (
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/paddockvm/paddock/test/harness"
)

// TestBenchCommands runs each measurement that drives machines or the host by itself, as short as it goes: what `make bench` calls works.
// Figures are not looked at.
func TestBenchCommands(t *testing.T) {
	needMachines(t)
	needRoot(t)
	bin, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	cache, err := harness.Cache()
	if err != nil {
		t.Fatal(err)
	}
	for name, args := range map[string][]string{
		"boot": {"--machines", "1"}, "restore": {"--clones", "1"}, "snapshot": {"--rounds", "1"}, "jail": {"--vmms", "1"}, "network": {"--slots", "2"}, "density": {"--machines", "1"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, bin, append([]string{"bench", name, "--json", "--image-dir", filepath.Join(cache, "images")}, args...)...)
			out, err := cmd.Output()
			if err != nil {
				var said []byte
				if failed, ok := err.(*exec.ExitError); ok { //nolint:errorlint // Output gives it as it is
					said = failed.Stderr
				}
				t.Fatalf("%v: %s", err, said)
			}
			var report struct {
				Samples map[string][]float64 `json:"samples"`
			}
			if err := json.Unmarshal(out, &report); err != nil || len(report.Samples) == 0 {
				t.Errorf("no samples in %s: %v", out, err)
			}
		})
	}
}
