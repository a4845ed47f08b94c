package zone

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

const (
	// StripesPath is in front of a stripe's ID in its path.
	StripesPath = "/stripes/"
	// HavePath answers which of many stripes a node holds.
	HavePath = StripesPath + "have"
	// IDSize is the length in bytes of a stripe's ID in a question to HavePath.
	IDSize = 32 + 3
	// MaxHave is the most IDs in one question to HavePath: an image of 2 GiB.
	MaxHave = 4096
	// LeaseHeader is the header in which a GET asks for a lease, by a token of 1
	// to MaxToken bytes, and in which a 404 tells what came of it.
	LeaseHeader = "Thaw-Lease"
	// MaxToken is the length in bytes of the longest worker's token.
	MaxToken = 64
	// MaxWait is the longest that a GET may wait for another worker's fill.
	MaxWait = 5 * time.Second
)

// Lease is what a node says of a missing stripe to who asked for a lease: it
// is the asker's to fill, or another's, and for how long. For is whole
// milliseconds, from 0 to MaxWait.
type Lease struct {
	Granted bool
	For     time.Duration
}

// String gives the lease as it stands in the header: "granted MS" or "held MS".
func (l Lease) String() string {
	word := "held "
	if l.Granted {
		word = "granted "
	}
	return word + strconv.FormatInt(l.For.Milliseconds(), 10)
}

// ParseLease reads what String wrote. A time beyond MaxWait is cut to it: who
// wrote it is not trusted.
func ParseLease(s string) (Lease, error) {
	word, number, _ := strings.Cut(s, " ")
	ms, err := strconv.ParseUint(number, 10, 31)
	if err != nil || word != "granted" && word != "held" {
		return Lease{}, fmt.Errorf("zone: %.80q is not a lease: want granted MS or held MS", s)
	}
	return Lease{word == "granted", min(time.Duration(ms)*time.Millisecond, MaxWait)}, nil
}
