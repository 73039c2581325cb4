package cloudhypervisor

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/paddockvm/paddock/vmm"
)

// A state is a tree of JSON objects {"snapshots": {NAME: …}, "snapshot_data": {"state": TEXT}}, of the devices' names, where TEXT is JSON
// again (vm-migration/src/lib.rs, Snapshot). What is not looked at here is kept as it stands: numbers may have 64 bits.
type node map[string]json.RawMessage

// errNoPart says that the state has no part of that name.
var errNoPart = errors.New("it is not in the state")

// edit gives the state with the data of the part below these names as f leaves it.
func edit(state []byte, names []string, f func(data node) error) ([]byte, error) {
	var n node
	if err := json.Unmarshal(state, &n); err != nil {
		return nil, err
	}
	if len(names) > 0 {
		var parts node
		if err := json.Unmarshal(n["snapshots"], &parts); err != nil {
			return nil, err
		}
		part, ok := parts[names[0]]
		if !ok {
			return nil, errNoPart
		}
		var err error
		if parts[names[0]], err = edit(part, names[1:], f); err != nil {
			return nil, err
		}
		return n.with("snapshots", parts)
	}
	var data struct {
		State string `json:"state"`
	}
	if err := json.Unmarshal(n["snapshot_data"], &data); err != nil {
		return nil, err
	}
	var inner node
	if err := json.Unmarshal([]byte(data.State), &inner); err != nil {
		return nil, err
	}
	if err := f(inner); err != nil {
		return nil, err
	}
	b, err := json.Marshal(inner)
	if err != nil {
		return nil, err
	}
	data.State = string(b)
	return n.with("snapshot_data", data)
}

// with gives the node as JSON, with another value.
func (n node) with(key string, value any) (b []byte, err error) {
	if n[key], err = json.Marshal(value); err != nil {
		return nil, err
	}
	return json.Marshal(n)
}

// withoutMemory makes of a state whose memory is in a file copiedFile one that has all of it where its configuration says: size bytes, or
// none where they were not to be copied. More would be lost.
func withoutMemory(state []byte, size int64) ([]byte, error) {
	b, err := edit(state, []string{"memory-manager"}, func(data node) error {
		var copied struct {
			Data []struct {
				Length uint64
			}
		}
		if err := json.Unmarshal(data["memory_ranges"], &copied); err != nil {
			return errors.Join(errNoPart, err)
		}
		left := uint64(size)
		for _, r := range copied.Data {
			if r.Length > left {
				return fmt.Errorf("the guest has taken memory beyond the %d bytes of its template: %w", size, vmm.ErrUnsupported)
			}
			left -= r.Length
		}
		data["memory_ranges"] = json.RawMessage(`{"data":[]}`)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: memory ranges: %w", stateFile, err)
	}
	return b, nil
}
