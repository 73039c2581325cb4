package cloudhypervisor

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/paddockvm/paddock/vmm/cloudhypervisor/api"
)

// oldest is the oldest release that maps a zone's file read-only where the zone is not shared: clones of older ones could not open a
// template's memory.
const oldest = 51

// release is a major version: what the VMM does goes by it.
type release int

// resumesItself says whether vm.restore takes "resume": older ones pass it over and leave the machine paused.
func (r release) resumesItself() bool { return r >= 52 }

// keeps says whether a machine can be kept while it runs on. vm.pause of older ones does not wait for what a disk has under way, which a
// clone would then wait for, for ever; v51 does not even tell a clone's guest that its connections have ended.
func (r release) keeps() bool { return r >= 53 }

// ask waits until the VMM answers, and gives its version and release.
func ask(ctx context.Context, c *api.Client) (version string, r release, err error) {
	p, err := c.Ping(ctx)
	if err != nil {
		return "", 0, err
	}
	version = p.BuildVersion
	if version == "" {
		version = p.Version
	}
	major, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	n, err := strconv.Atoi(major)
	if err != nil {
		return "", 0, fmt.Errorf("cloud-hypervisor has version %q: not a release", version)
	}
	if n < oldest {
		return "", 0, fmt.Errorf("cloud-hypervisor has version %s, and v%d.0 or newer is needed: install a newer release", version, oldest)
	}
	return version, release(n), nil
}
