package functions

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"time"
)

// Reasons that clients see while a build is under way.
const (
	creatingReason = "The function is being created."
	creatingCode   = "Creating"
)

// Result is what became of a build.
type Result struct {
	ResolvedURI string // of an image, with its digest
	Image       string // image id
	Root        string // of the origin, that holds the image
	Reference   string // the name that keeps it there
	CodeSha256  string // empty: as it is
	CodeSize    int64  // bytes; 0: as it is
	// Code and Reason say why the build failed: Code is a StateReasonCode, as
	// InvalidImage, Reason a sentence for the user. Code is empty if it went well.
	Code, Reason string
}

// NewFunction makes a function with a first $LATEST, Pending, of v's
// configuration and package.
func NewFunction(id ID, v Version, now time.Time) *Function {
	f := &Function{ID: id, Created: now, Next: 1, Latest: v}
	f.Latest.Number = Latest
	f.Latest.State, f.Latest.StateReason, f.Latest.StateReasonCode = Pending, creatingReason, creatingCode
	f.Latest.begin(now)
	return f
}

// Change gives $LATEST another configuration or package and begins its build. It
// refuses while a build is under way; the message names the function by arn.
func (f *Function) Change(arn string, now time.Time, change func(*Version) error) error {
	if err := f.Idle(arn); err != nil {
		return err
	}
	before := f.Latest
	if err := change(&f.Latest); err != nil {
		f.Latest = before
		return err
	}
	if f.Serving == nil && before.State == Active && before.LastUpdateStatus != Failed {
		f.Serving = &before
	}
	v := &f.Latest
	if v.State == Failed {
		v.State, v.StateReason, v.StateReasonCode = Pending, creatingReason, creatingCode
	}
	v.LastUpdateStatus, v.LastUpdateReason, v.LastUpdateReasonCode = inProgress, creatingReason, creatingCode
	v.begin(now)
	return nil
}

// Idle refuses while a build of $LATEST is under way.
func (f *Function) Idle(arn string) error {
	switch {
	case f.Latest.State == Pending:
		return refuse(kindConflict, "The operation cannot be performed at this time. The function is currently in the following state: Pending")
	case f.Latest.LastUpdateStatus == inProgress:
		return refuse(kindConflict, "The operation cannot be performed at this time. An update is in progress for resource: %s", arn)
	}
	return nil
}

// settle puts a build's result into the version that was built.
func (v *Version) settle(r Result) {
	v.Build = ""
	v.RevisionID = uuid()
	if r.ResolvedURI != "" {
		v.Package.ResolvedURI = r.ResolvedURI
	}
	if r.CodeSha256 != "" {
		v.CodeSha256 = r.CodeSha256
	}
	if r.CodeSize != 0 {
		v.CodeSize = r.CodeSize
	}
	if r.Code != "" {
		v.LastUpdateStatus, v.LastUpdateReason, v.LastUpdateReasonCode = Failed, r.Reason, r.Code
		if v.State == Pending {
			v.State, v.StateReason, v.StateReasonCode = Failed, r.Reason, r.Code
		}
		return
	}
	v.Package.Image, v.Package.Root, v.Package.Reference = r.Image, r.Root, r.Reference
	v.State, v.StateReason, v.StateReasonCode = Active, "", ""
	v.LastUpdateStatus, v.LastUpdateReason, v.LastUpdateReasonCode = successful, "", ""
}

// report shows how far a build has come.
func (v *Version) report(reason string) {
	if v.State == Pending {
		v.StateReason = reason
	}
	if v.LastUpdateStatus == inProgress {
		v.LastUpdateReason = reason
	}
}

// begin notes that there is something new, which is to be built.
func (v *Version) begin(now time.Time) {
	v.LastModified, v.RevisionID = now, uuid()
	v.Revision = word()
	v.Build = v.Revision
}

// SetAlias adds or replaces an alias, and gives it a RevisionID.
func (f *Function) SetAlias(name string, a Alias) {
	if f.Aliases == nil {
		f.Aliases = map[string]Alias{}
	}
	a.RevisionID = uuid()
	f.Aliases[name] = a
}

// DeleteAlias removes an alias, if there is one, with all that is set for it.
func (f *Function) DeleteAlias(name string) {
	if _, ok := f.Aliases[name]; ok {
		delete(f.Aliases, name)
		f.forget(name)
	}
}

// Touch gives a qualifier another RevisionID, since its policy has changed; an
// alias or version that is not there is left alone.
func (f *Function) Touch(qualifier string) {
	if a, ok := f.Aliases[qualifier]; ok {
		a.RevisionID = uuid()
		f.Aliases[qualifier] = a
		return
	}
	if qualifier == "" || qualifier == Latest {
		f.Latest.RevisionID = uuid()
	} else if _, ok := f.Versions[qualifier]; ok {
		if f.Revisions == nil {
			f.Revisions = map[string]string{}
		}
		f.Revisions[qualifier] = uuid()
	}
}

// uuid gives a new random one.
func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// word gives a random name for a build or a record.
func word() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
