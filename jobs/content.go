package jobs

import "unicode/utf8"

// Content is bytes in JSON: as text where they are valid UTF-8, else as base64. Embedded, its two fields appear in the object.
type Content struct {
	// Text is the bytes, where they are UTF-8.
	Text string `json:"text,omitempty"`
	// Base64 is the bytes, where they are not.
	Base64 []byte `json:"base64,omitempty"`
}

// ContentOf puts b into whichever field can carry it. It copies b only for text.
func ContentOf(b []byte) Content {
	if utf8.Valid(b) {
		return Content{Text: string(b)}
	}
	return Content{Base64: b}
}

// Data gives the bytes back.
func (c Content) Data() []byte {
	if c.Text != "" {
		return []byte(c.Text)
	}
	return c.Base64
}

// Len is how many bytes Data gives.
func (c Content) Len() int { return max(len(c.Text), len(c.Base64)) }
