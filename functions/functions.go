// Package functions keeps the records of functions: their configuration, code,
// versions, aliases and everything else that the control API sets.
//
// # Records
//
//	f/<account>/<name>           Function: $LATEST, aliases, policies, and what else belongs to the name
//	v/<account>/<name>/<word>    Version: one that was published; but for its state it never changes
//	a/<account>                  the sum of what functions have reserved of the account's concurrency
//
// Records are JSON. A version is there once its number is among the function's
// Versions, which have its random word. A function's record is updated by compare-and-swap; one
// that would pass 1.5 MiB is refused. Who is killed before a function names what it
// has published, or cannot remove what is not named any more, leaves a version's
// record that nobody reads: builders remove it, by RemoveUnnamed.
//
// # States
//
// A function is created Pending; an update makes it InProgress. Both carry a
// Build, a random word: the builder watches for those, makes the image, and
// calls Settle with the same word. What has been updated meanwhile has another
// word, so a late builder changes nothing. Settle also settles the versions that
// were published with that build. Nothing but Settle ends Pending and InProgress,
// and it may be called again after a crash. Until an update has been settled
// well, invokes of $LATEST run what was there before: see Function.Invoked.
package functions

import (
	"encoding/json"
	"fmt"
	"time"
)

// maxRecord in bytes of JSON; the cluster takes 2 MiB, keys and framing included.
const maxRecord = 3 << 19

// maxVersions of one function are published at a time: each may take some 40 KB.
const maxVersions = 1000

// Latest is the number of the version that updates change.
const Latest = "$LATEST"

// States of a version.
const (
	Pending = "Pending"
	Active  = "Active"
	Failed  = "Failed"
)

// States of the last update of $LATEST; Failed is the third.
const (
	inProgress = "InProgress"
	successful = "Successful"
)

// ID names a function.
type ID struct {
	Account string // twelve digits
	Name    string
}

// String gives account/name.
func (id ID) String() string { return id.Account + "/" + id.Name }

// Function is what belongs to a function's name.
type Function struct {
	ID
	Damaged error `json:"-"` // why the record cannot be read: of functions that List gives
	Created time.Time
	Latest  Version
	// Serving is what invokes of $LATEST run while Latest is being built, and
	// after that has failed; nil: Latest.
	Serving *Version `json:",omitempty"`

	Next      int               // the number that the next published version gets
	Versions  map[string]string `json:",omitempty"` // published ones: words of their records by number
	Unsettled []string          `json:",omitempty"` // numbers of those published with the build under way
	Published string            `json:",omitempty"` // the number published last
	// PublishedAs is the Revision that $LATEST had then: if it still has, there is nothing to publish.
	PublishedAs string                 `json:",omitempty"`
	Aliases     map[string]Alias       `json:",omitempty"` // by name
	Policies    map[string][]Statement `json:",omitempty"` // by qualifier, in the order they were added; "" is the function's own
	Revisions   map[string]string      `json:",omitempty"` // RevisionIDs of versions whose policies have changed since they were published
	Events      map[string]EventConfig `json:",omitempty"` // by qualifier: $LATEST, a number or an alias
	URLs        map[string]URL         `json:",omitempty"` // by alias; "" is the function's own
	Tags        map[string]string      `json:",omitempty"`
	Reserved    *int                   `json:",omitempty"` // concurrent executions; nil: none
	Recursion   string                 `json:",omitempty"` // Allow; empty: Terminate
	// RuntimeUpdates are the modes of runtime management by version; absent: Auto.
	RuntimeUpdates map[string]string `json:",omitempty"`
}

// Version is a function's code and configuration in one state.
type Version struct {
	Number string // Latest, or decimal
	Config
	Package    Package
	CodeSha256 string // of an image: hex; of a zip: base64
	CodeSize   int64  // bytes

	State                string
	StateReason          string `json:",omitempty"`
	StateReasonCode      string `json:",omitempty"`
	LastUpdateStatus     string `json:",omitempty"`
	LastUpdateReason     string `json:",omitempty"`
	LastUpdateReasonCode string `json:",omitempty"`

	RevisionID string // a UUID; changes with everything that clients see, permissions too
	// Revision changes with code and configuration alone: instances of another one are old.
	Revision     string
	LastModified time.Time
	// Build is the Revision while that is to be built: what the builder passes to
	// Settle. Empty: there is nothing to build.
	Build string `json:",omitempty"`
}

// Config is what a client says of a version but for its code.
type Config struct {
	Description    string   `json:",omitempty"`
	Role           string   // an ARN, of which nothing is taken
	Runtime        string   `json:",omitempty"` // of zip packages
	Handler        string   `json:",omitempty"` // of zip packages
	Timeout        int      // seconds
	Memory         int      // MB
	Tmp            int      // MB
	Env            []byte   `json:",omitempty"` // variables, sealed by who writes and reads them; nil: none were given
	Architecture   string   // x86_64 or arm64
	Entrypoint     []string `json:",omitempty"` // replaces the image's
	Command        []string `json:",omitempty"` // replaces the image's
	Workdir        string   `json:",omitempty"` // replaces the image's
	LogFormat      string   // Text or JSON
	LogGroup       string   // where its log goes
	AppLogLevel    string   `json:",omitempty"` // with JSON
	SystemLogLevel string   `json:",omitempty"` // with JSON
	Tracing        string   // PassThrough, or Active, which changes nothing
}

// Package is where a version's code comes from, and the device that was made of it.
type Package struct {
	ImageURI    string `json:",omitempty"` // as given; empty for a zip
	ResolvedURI string `json:",omitempty"` // with a digest: set once, by Resolve or Settle
	Zip         string `json:",omitempty"` // key of the package in the origin
	Image       string `json:",omitempty"` // image id; empty: not made yet
	Root        string `json:",omitempty"` // of the origin, that holds the image
	Reference   string `json:",omitempty"` // the name that keeps the image in the origin
}

// Reference names the image that one build of a function makes. No two builds
// have the same: a name that no version refers to is never referred to again.
func (id ID) Reference(build string) string { return "function/" + id.Name + ":" + build }

// Alias is a name for a version, or for two with a weight.
type Alias struct {
	Description string  `json:",omitempty"`
	Version     string  // Latest or a number
	Second      string  `json:",omitempty"` // the other version, a number
	Weight      float64 `json:",omitempty"` // 0 to 1: the share of invokes that Second gets
	RevisionID  string
}

// Pick chooses a version for one invoke; random is from [0, 1).
func (a Alias) Pick(random float64) string {
	if a.Second != "" && random < a.Weight {
		return a.Second
	}
	return a.Version
}

// Statement is a part of a function's policy: it allows one principal one thing.
type Statement struct {
	Sid           string
	Action        string // lambda:InvokeFunction
	Principal     string // as given: a service, an account, an ARN or *
	SourceARN     string `json:",omitempty"` // may hold wildcards
	SourceAccount string `json:",omitempty"`
	OrgID         string `json:",omitempty"`
	EventToken    string `json:",omitempty"`
	URLAuth       string `json:",omitempty"` // NONE or AWS_IAM
	ViaURL        bool   `json:",omitempty"` // only invokes that come by the URL
}

// EventConfig is how asynchronous invokes of one qualifier are treated.
type EventConfig struct {
	MaxRetries   *int `json:",omitempty"` // 0 to 2; nil: 2
	MaxAge       *int `json:",omitempty"` // seconds, 60 to 21600; nil: six hours
	LastModified time.Time
}

// URL is an HTTP address of a function or of an alias.
type URL struct {
	ID       string // the first label of its host name: unique, unguessable
	Auth     string // NONE or AWS_IAM
	Mode     string // BUFFERED or RESPONSE_STREAM
	Cors     *Cors  `json:",omitempty"`
	Created  time.Time
	Modified time.Time
}

// Cors is what a function URL tells browsers.
type Cors struct {
	AllowCredentials bool     `json:",omitempty"`
	AllowHeaders     []string `json:",omitempty"`
	AllowMethods     []string `json:",omitempty"`
	AllowOrigins     []string `json:",omitempty"`
	ExposeHeaders    []string `json:",omitempty"`
	MaxAge           int      `json:",omitempty"` // seconds
}

// Invoked is what an invoke of $LATEST runs now: the last version that has been
// built, or Latest if none has.
func (f *Function) Invoked() *Version {
	if f.Serving != nil {
		return f.Serving
	}
	return &f.Latest
}

// Qualified tells which version a qualifier stands for; random, from [0, 1),
// chooses between an alias's two. An empty qualifier is $LATEST.
func (f *Function) Qualified(qualifier string, random float64) (version string, err error) {
	switch {
	case qualifier == "" || qualifier == Latest:
		return Latest, nil
	case isNumber(qualifier):
		return qualifier, nil
	}
	if a, ok := f.Aliases[qualifier]; ok {
		return a.Pick(random), nil
	}
	return "", &Error{Kind: kindNotFound, Text: "Function not found: qualifier " + qualifier}
}

// Error is a refusal as a client of the API sees it. Errors of kind
// ResourceNotFoundException match ErrNotFound.
type Error struct {
	Kind string // the exception's name
	Text string // for the client
}

// Error gives kind and message.
func (e *Error) Error() string { return e.Kind + ": " + e.Text }

// Code gives the exception's name.
func (e *Error) Code() string { return e.Kind }

// Message gives the text for the client.
func (e *Error) Message() string { return e.Text }

// Is tells whether a sentinel of this package stands for the error's kind.
func (e *Error) Is(target error) bool {
	return target == ErrNotFound && e.Kind == kindNotFound || target == ErrConflict && e.Kind == kindConflict
}

func refuse(kind, format string, args ...any) error {
	return &Error{Kind: kind, Text: fmt.Sprintf(format, args...)}
}

const (
	kindNotFound  = "ResourceNotFoundException"
	kindConflict  = "ResourceConflictException"
	kindParameter = "InvalidParameterValueException"
	kindStorage   = "CodeStorageExceededException"
	kindValid     = "ValidationException"
)

// clone copies a record, so that what a caller changes stays its own.
func clone[T any](v *T) (*T, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("copy record: %w", err)
	}
	out := new(T)
	return out, json.Unmarshal(b, out)
}
