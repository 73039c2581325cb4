package main

import (
	"os"
	"strings"
	"testing"
)

// TestDoctorIsDocumented: docs/kvm-host.md says what each line of the doctor's means; the jail's walls are in docs/jail.md.
func TestDoctorIsDocumented(t *testing.T) {
	host, err := os.ReadFile("../../docs/kvm-host.md")
	if err != nil {
		t.Fatal(err)
	}
	walls, err := os.ReadFile("../../docs/jail.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range (examination{state: t.TempDir()}).run(t.Context()) {
		page, short := host, f.Check
		if strings.HasPrefix(f.Check, "jail.") {
			page, short = walls, strings.TrimPrefix(f.Check, "jail.cgroup") // after the first they are abbreviated
		}
		if !strings.Contains(string(page), "`"+f.Check+"`") && !strings.Contains(string(page), "`"+short+"`") {
			t.Errorf("no word of %q", f.Check)
		}
	}
}
