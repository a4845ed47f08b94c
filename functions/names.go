package functions

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// ErrNotFound says that there is no such function, version or alias.
var ErrNotFound = errors.New("no such function")

// ErrConflict says that a record exists, has changed, or is being updated.
var ErrConflict = errors.New("function is in the way of the change")

// Name is how a client names a function: by name, by partial or by full ARN,
// each with or without a qualifier. What the client left out is empty.
type Name struct {
	Region    string
	Account   string
	Function  string
	Qualifier string // $LATEST, a number or an alias
}

// The service model's own patterns, as its messages quote them, and longest names.
const (
	patternGet    = `(arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?(function:)?([a-zA-Z0-9-_\.]+)(:(\$LATEST(\.PUBLISHED)?|[a-zA-Z0-9-_]+))?`
	patternCreate = `(arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?(function:)?([a-zA-Z0-9-_]+)(:(\$LATEST|[a-zA-Z0-9-_]+))?`
	patternQual   = `\$(LATEST(\.PUBLISHED)?)|[a-zA-Z0-9-_$]+`

	maxName      = 64  // of a function's own name
	maxReference = 170 // of a name with everything around it
	maxCreate    = 140 // of the same when a function is created or deleted
	maxQualifier = 128
)

var (
	references = regexp.MustCompile(`^(?:arn:(?:aws[a-zA-Z-]*)?:lambda:)?` +
		`(?:((?:eusc-)?[a-z]{2}(?:-gov|-iso[a-z]?)?-[a-z]+-\d):)?(?:(\d{12}):)?(?:function:)?` +
		`([a-zA-Z0-9_.-]+)(?::(\$LATEST(?:\.PUBLISHED)?|[a-zA-Z0-9_-]+))?$`)
	newNames   = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)
	qualifiers = regexp.MustCompile(`^(?:\$LATEST(?:\.PUBLISHED)?|[a-zA-Z0-9_-]+)$`)
	numbers    = regexp.MustCompile(`^[0-9]+$`)
)

// ParseName reads how a client named a function. Errors are of type Error.
func ParseName(s string) (Name, error) {
	n := split(s)
	switch {
	case n.Function == "":
		return Name{}, invalid(s, "functionName", "Member must satisfy regular expression pattern: "+patternGet)
	case len(s) > maxReference:
		return Name{}, &Error{Kind: kindValid, Text: detected([]string{tooLong(s, "functionName", maxReference)})}
	}
	return n, nil
}

// ParseNewName is ParseName for a function that is to be created: its name has
// at most 64 characters and no dots.
func ParseNewName(s string) (Name, error) {
	n := split(s)
	bare := s != "" && n == (Name{Function: s})
	limit := maxCreate
	if bare {
		limit = maxName
	}
	var complaints []string
	if !newNames.MatchString(n.Function) {
		complaints = append(complaints, complaint(s, "functionName", "Member must satisfy regular expression pattern: "+patternCreate))
	}
	if len(s) > limit {
		complaints = append(complaints, tooLong(s, "functionName", limit))
	}
	if len(n.Function) > maxName && !bare {
		complaints = append(complaints, tooLong(n.Function, "functionName", maxName))
	}
	switch {
	case len(complaints) > 0 && bare:
		return Name{}, &Error{Kind: kindParameter, Text: detected(complaints)}
	case len(complaints) > 0:
		return Name{}, &Error{Kind: kindValid, Text: detected(complaints)}
	}
	return n, nil
}

// split takes a name apart; what does not match the pattern has no function.
func split(s string) Name {
	m := references.FindStringSubmatch(s)
	if m == nil {
		return Name{}
	}
	return Name{Region: m[1], Account: m[2], Function: m[3], Qualifier: m[4]}
}

// In completes a name with the caller's account, this region and the qualifier
// that came beside the name, if any. What names another account or region, or
// two qualifiers, is refused.
func (n Name) In(account, region, qualifier string) (Name, error) {
	switch {
	case n.Account != "" && n.Account != account:
		return n, &Error{Kind: "AccessDeniedException", Text: fmt.Sprintf(
			"User: arn:aws:iam::%s:root is not authorized to perform this operation on resource: %s", account, n.ARN(region))}
	case n.Region != "" && n.Region != region:
		return n, &Error{Kind: kindNotFound, Text: fmt.Sprintf("Functions from '%s' are not reachable in this region ('%s')", n.Region, region)}
	case qualifier != "" && len(qualifier) > maxQualifier:
		return n, &Error{Kind: kindValid, Text: detected([]string{tooLong(qualifier, "qualifier", maxQualifier)})}
	case qualifier != "" && !qualifiers.MatchString(qualifier):
		return n, invalid(qualifier, "qualifier", "Member must satisfy regular expression pattern: "+patternQual)
	case qualifier != "" && n.Qualifier != "" && qualifier != n.Qualifier:
		return n, &Error{Kind: kindParameter, Text: "The derived qualifier from the function name does not match the specified qualifier."}
	}
	n.Account, n.Region = account, region
	if qualifier != "" {
		n.Qualifier = qualifier
	}
	return n, nil
}

// ID gives the function that is named.
func (n Name) ID() ID { return ID{Account: n.Account, Name: n.Function} }

// ARN gives the full name with the qualifier, if there is one; region is used
// where the name has none.
func (n Name) ARN(region string) string {
	if n.Region != "" {
		region = n.Region
	}
	return n.ID().ARN(region, n.Qualifier)
}

// ARN gives the function's full name, with a qualifier unless that is empty.
func (id ID) ARN(region, qualifier string) string {
	arn := "arn:aws:lambda:" + region + ":" + id.Account + ":function:" + id.Name
	if qualifier != "" {
		arn += ":" + qualifier
	}
	return arn
}

func isNumber(s string) bool { return numbers.MatchString(s) }

// invalid refuses one value as the service's own front does.
func invalid(value, member, constraint string) error {
	return &Error{Kind: kindValid, Text: detected([]string{complaint(value, member, constraint)})}
}

func tooLong(value, member string, limit int) string {
	return complaint(value, member, fmt.Sprintf("Member must have length less than or equal to %d", limit))
}

func complaint(value, member, constraint string) string {
	const most = 256 // of a value: what a client sent is not sent back at any length
	if len(value) > most {
		value = strings.ToValidUTF8(value[:most], "") + "..."
	}
	return fmt.Sprintf("Value '%s' at '%s' failed to satisfy constraint: %s", value, member, constraint)
}

func detected(complaints []string) string {
	plural := ""
	if len(complaints) > 1 {
		plural = "s"
	}
	return fmt.Sprintf("%d validation error%s detected: %s", len(complaints), plural, strings.Join(complaints, "; "))
}
