package main

import (
	"bytes"
	"errors"
	"io"
	"time"
)

// Stream asks for an answer piece by piece.
type Stream struct {
	Pieces  int    `json:"pieces"`
	Bytes   int    `json:"bytes"`    // of each
	EveryMS int    `json:"every_ms"` // pause before each piece but the first
	Fail    string `json:"fail"`     // what to fail with after the last
	Type    string `json:"type"`     // content type
}

// stream is a reader that the library sends as it is read.
type stream struct {
	ask  Stream
	sent int
	left []byte
}

// newStream makes the reader. It is no struct with members that JSON sees: of
// such the library would send the JSON.
func newStream(ask Stream) io.Reader { return &stream{ask: ask} }

// Read gives at most what is left of one piece.
func (s *stream) Read(p []byte) (int, error) {
	if len(s.left) == 0 {
		if s.sent >= s.ask.Pieces {
			if s.ask.Fail != "" {
				return 0, errors.New(s.ask.Fail)
			}
			return 0, io.EOF
		}
		if s.sent > 0 {
			time.Sleep(milliseconds(s.ask.EveryMS))
		}
		s.left = bytes.Repeat([]byte{byte('a' + s.sent%26)}, max(s.ask.Bytes, 1))
		s.sent++
	}
	n := copy(p, s.left)
	s.left = s.left[n:]
	return n, nil
}

// ContentType is what the library asks for.
func (s *stream) ContentType() string {
	if s.ask.Type == "" {
		return "application/octet-stream"
	}
	return s.ask.Type
}
