// Package checkpoint is the form in which a machine's state is kept that was taken while it ran (vmm.Checkpointer): of its memory and of
// its scratch disk only the blocks that differ from a base. Drivers write it, with the help of what reads another process's memory here;
// Flatten makes a template of a base and the deltas above it.
//
// A delta is two files: NAME has the full size and holds the changed blocks where they belong, all else being holes; NAME.index lists
// them, since a block that became zero is a change too. Files without an index are whole: the state of the devices, a driver's manifest.
//
// Linux only. It imports golang.org/x/sys besides the standard library.
package checkpoint

// Names of the files.
const (
	StateFile   = "state"
	MemoryFile  = "memory"
	ScratchFile = "scratch"
	// IndexSuffix ends the name of a delta's index.
	IndexSuffix = ".index"
)

// Block is the granularity of deltas, in bytes: a page of memory, and what file systems allocate.
const Block = 4096
