package jobs

// Defaults are the limits of a step that names none.
var defaultLimits = Limits{
	WallMS:      60_000,
	CPUMS:       60_000,
	MemoryBytes: 128 << 20,
	PIDs:        128,
	OutputBytes: 16 << 20,
	FileBytes:   64 << 20,
	DiskBytes:   256 << 20,
	OpenFiles:   1024,
}

// MaxLimits is the largest value that validation lets through for each limit.
var maxLimits = Limits{
	WallMS:      24 * 3600 * 1000,
	CPUMS:       24 * 3600 * 1000,
	MemoryBytes: 1 << 40,
	PIDs:        1 << 16,
	OutputBytes: 1 << 30,
	FileBytes:   1 << 40,
	DiskBytes:   1 << 40,
	OpenFiles:   1 << 20,
}

// Or gives l with every zero field taken from d.
func (l Limits) Or(d Limits) Limits {
	or := func(v, d int64) int64 {
		if v == 0 {
			return d
		}
		return v
	}
	return Limits{
		WallMS:      or(l.WallMS, d.WallMS),
		CPUMS:       or(l.CPUMS, d.CPUMS),
		MemoryBytes: or(l.MemoryBytes, d.MemoryBytes),
		PIDs:        or(l.PIDs, d.PIDs),
		OutputBytes: or(l.OutputBytes, d.OutputBytes),
		FileBytes:   or(l.FileBytes, d.FileBytes),
		DiskBytes:   or(l.DiskBytes, d.DiskBytes),
		OpenFiles:   or(l.OpenFiles, d.OpenFiles),
	}
}

// DefaultLimits are the limits of a step that names none. A CPU limit left out follows the wall limit.
func DefaultLimits() Limits { return defaultLimits }

// StepLimits are the limits that hold for a step of the job: its own, else the job's, else the defaults.
func (s *Spec) StepLimits(step Step) Limits {
	l := step.Limits.Or(s.Limits)
	if l.CPUMS == 0 {
		l.CPUMS = l.WallMS
	}
	return l.Or(defaultLimits)
}
