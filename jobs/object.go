package jobs

// ObjectHeader holds, as JSON, an ObjectRequest with whose message an object's bytes come, and the ObjectReply with whose message they go.
const ObjectHeader = "Paddock-Object"

// MaxObjectBytes is the most that an object may have.
const MaxObjectBytes = 4 << 30

// ObjectRequest is about one object of the subject's tenant; the answer is an ObjectReply. Put has it in the header Paddock-Object, and a
// piece of the object as its body; the others have it as their body.
type ObjectRequest struct {
	// SHA256 is the content's digest, 64 lower-case hexadecimal digits: the object's name.
	SHA256 string `json:"sha256"`
	// Job is one that names an object of this digest, whatever that is called; it is for what others than Paddock have put under a name of
	// their own. Of stat and get.
	Job string `json:"job,omitempty"`
	// Offset is where in the object the piece is that is sent or asked for.
	Offset int64 `json:"offset,omitempty"`
	// Size is the whole object's, in bytes; of put only.
	Size int64 `json:"size,omitempty"`
	// MaxBytes bounds the piece that is asked for; 0 is as much as a message carries. Of get only.
	MaxBytes int64 `json:"max_bytes,omitempty"`
}

// ObjectReply answers an ObjectRequest. One with a piece of an object has it as its body, and this in the header Paddock-Object.
type ObjectReply struct {
	// Size is the whole object's, in bytes.
	Size int64 `json:"size"`
	// Offset is where in the object the piece is.
	Offset int64 `json:"offset,omitempty"`
	// Stored says that there is the object now, and that it is as new: put has nothing more to send.
	Stored bool `json:"stored,omitempty"`
	// Next is the first byte that put has not got; Size where it has them all and has not stored them yet.
	Next int64 `json:"next,omitempty"`
	// Warnings name unknown fields of the request and the nearest known ones.
	Warnings []string `json:"warnings,omitempty"`
	// Error is why it was refused.
	Error *Error `json:"error,omitempty"`
}

// IsDigest tells whether a text is a sha256 as objects are named by it.
func IsDigest(s string) bool { return sha256RE.MatchString(s) }

func (q *ObjectRequest) check(c *checker) {
	if !IsDigest(q.SHA256) {
		c.fault("sha256", "must be 64 lower-case hexadecimal digits")
	}
	c.name("job", q.Job)
	c.within("offset", q.Offset, MaxObjectBytes)
	if q.Size < 0 {
		c.fault("size", "is %d, must be 0 or more", q.Size)
	}
	if q.MaxBytes < 0 {
		c.fault("max_bytes", "is %d, must be 0 or more", q.MaxBytes)
	}
}
