package cloudhypervisor

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/paddockvm/paddock/vmm"
)

// What is not the memory's stays as it stands, numbers of 64 bits too.
func TestWithoutMemory(t *testing.T) {
	const before = `{"snapshots":{"cpu-manager":{"snapshots":{},"snapshot_data":null},` +
		`"memory-manager":{"snapshots":{},"snapshot_data":{"state":"{\"memory_ranges\":{\"data\":[{\"gpa\":0,\"length\":4096},{\"gpa\":18446744073709551615,\"length\":1}]},\"boot_ram\":18446744073709551615}"}}},` +
		`"snapshot_data":{"state":"{\"clock\":18446744073709551615}"}}`
	got, err := withoutMemory([]byte(before), 4097)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"snapshot_data":{"state":"{\"clock\":18446744073709551615}"},"snapshots":{"cpu-manager":{"snapshots":{},"snapshot_data":null},` +
		`"memory-manager":{"snapshot_data":{"state":"{\"boot_ram\":18446744073709551615,\"memory_ranges\":{\"data\":[]}}"},"snapshots":{}}}}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for i := range len(before) { // it was not written to its end
		if _, err := withoutMemory([]byte(before[:i]), 4097); err == nil {
			t.Errorf("the first %d bytes pass", i)
		}
	}
	for _, size := range []int64{0, 4096} { // it has memory that its template has not
		if _, err := withoutMemory([]byte(before), size); !errors.Is(err, vmm.ErrUnsupported) {
			t.Errorf("with %d bytes: %v", size, err)
		}
	}
	for _, other := range []string{`{}`, `{"snapshots":{}}`, `{"snapshots":{"memory-manager":{"snapshot_data":{"state":"{}"}}}}`, `[]`, `null`} {
		_, err := withoutMemory([]byte(other), 4097)
		if _, syntax := errors.AsType[*json.SyntaxError](err); err == nil || other == `{"snapshots":{}}` && syntax {
			t.Errorf("%s: %v", other, err)
		}
	}
}

func TestToSpend(t *testing.T) {
	for ports, want := range map[int64]int{-1: 0, 0: 0, 1: 1, lingering: lingering, lingering + 1: 0, 1 << 40: 0} {
		if got := toSpend(ports); got != want {
			t.Errorf("of %d ports %d are spent, want %d", ports, got, want)
		}
	}
}
