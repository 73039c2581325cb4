package qemu

import (
	"errors"
	"sync"
)

// errKept is a guest that refuses.
var errKept = errors.New("the guest does not let go of it")

// ost is a guest's word on what it was asked by ACPI (_OST; ACPI specification, 6.3.5).
type ost struct {
	Device string `json:"device"`
	Source int    `json:"source"`
	Status int    `json:"status"`
}

// kept tells whether it refuses an ejection. In progress (0x84) is no refusal.
func (o ost) kept() bool {
	const requested, byGuest, inProgress = 3, 0x103, 0x84
	return (o.Source == requested || o.Source == byGuest) && o.Status != 0 && o.Status != inProgress
}

// unplugs are devices that guests are asked for. The zero value is ready.
type unplugs struct {
	mu       sync.Mutex
	expected map[string]chan error
}

// expect gives a channel on which the guest's answer comes.
func (u *unplugs) expect(id string) <-chan error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.expected == nil {
		u.expected = map[string]chan error{}
	}
	answer := make(chan error, 1)
	u.expected[id] = answer
	return answer
}

// giveUp expects no answer any more, and tells whether the device has gone meanwhile.
func (u *unplugs) giveUp(id string) (gone bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	answer := u.expected[id]
	delete(u.expected, id)
	select {
	case err := <-answer:
		return err == nil
	default:
		return false
	}
}

// tell is called by the QMP reader: nil says that the device is gone.
func (u *unplugs) tell(id string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if answer := u.expected[id]; answer != nil {
		select {
		case answer <- err:
		default: // it has been told
		}
	}
}
