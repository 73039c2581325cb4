package cloudhypervisor_test

import "golang.org/x/sys/unix"

// halt ends the machine, and not the VMM.
func (v *fakeVMM) halt() {
	v.guest.halt()
	for _, c := range v.opened {
		_ = c.Close()
		delete(v.conns, c)
	}
	if v.memory != nil {
		_ = unix.Munmap(v.memory)
	}
	v.guest, v.memory, v.opened, v.state = nil, nil, nil, "Created"
}

func (v *fakeVMM) shutdown() error {
	if err := v.runs("The VM could not shutdown"); err != nil {
		return err
	}
	v.halt()
	v.event("vm", "shutdown")
	return nil
}

// delete has nothing to do where there is nothing.
func (v *fakeVMM) delete() error {
	if v.config == nil {
		return nil
	}
	if v.booted() {
		_ = v.shutdown()
	}
	v.state, v.config = "", nil
	v.event("vm", "deleted")
	return nil
}

// reboot is told of before it is known whether there is anything to reboot.
func (v *fakeVMM) reboot() error {
	const what = "The VM could not reboot"
	v.event("vm", "rebooting")
	if !v.booted() { // whether or not it was created
		return v.missing(what, "VM is not created")
	}
	v.halt()
	if err := v.start(); err != nil {
		return internal(what, err.Error())
	}
	v.event("vm", "rebooted")
	return nil
}
