package lambdaapi

import (
	"errors"
	"strings"
	"testing"
)

// refused wants an error of a kind with exactly this text.
func refused(t *testing.T, what string, err error, kind Kind, want string) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Kind != kind || e.Message != want {
		t.Errorf("%s:\ngot  %v\nwant %s: %s", what, err, kind, want)
	}
}

const (
	functionName = `(arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?(function:)?([a-zA-Z0-9-_]+)(:(\$LATEST|[a-zA-Z0-9-_]+))?`
	rolePattern  = `arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+`
	role         = `"Role":"arn:aws:iam::000000000000:role/r","Code":{}`
)

// The texts are those that AWS answers, word for word.
func TestCreateFunctionRules(t *testing.T) {
	for body, want := range map[string]string{
		`"FunctionName":"invalid:function:name",` + role: "1 validation error detected: Value 'invalid:function:name' at 'functionName' failed to satisfy constraint: Member must satisfy regular expression pattern: " + functionName,
		`"FunctionName":"f","Role":"r1","Code":{}`:       "1 validation error detected: Value 'r1' at 'role' failed to satisfy constraint: Member must satisfy regular expression pattern: " + rolePattern,
		`"FunctionName":"f","Architectures":["X86_64"],` + role: "1 validation error detected: Value '[X86_64]' at 'architectures' failed to satisfy constraint: " +
			"Member must satisfy constraint: [Member must satisfy enum value set: [x86_64, arm64], Member must not be null]",
		`"FunctionName":"f","Architectures":["x86_64","arm64"],` + role: "1 validation error detected: Value '[x86_64, arm64]' at 'architectures' failed to satisfy constraint: " +
			"Member must have length less than or equal to 1",
		`"FunctionName":"f","SnapStart":{"ApplyOn":"invalidOption"},` + role: "1 validation error detected: Value 'invalidOption' at 'snapStart.applyOn' failed to satisfy constraint: Member must satisfy enum value set: [PublishedVersions, None]",
		`"FunctionName":"f","VpcConfig":{"SubnetIds":["bad id"]},` + role: "1 validation error detected: Value '[bad id]' at 'vpcConfig.subnetIds' failed to satisfy constraint: Member must satisfy constraint: " +
			"[Member must have length less than or equal to 1024, Member must have length greater than or equal to 0, Member must satisfy regular expression pattern: subnet-[0-9a-z]*]",
		`"FunctionName":"f","Timeout":0,` + role:        "1 validation error detected: Value '0' at 'timeout' failed to satisfy constraint: Member must have value greater than or equal to 1",
		`"FunctionName":"f","MemorySize":99999,` + role: "1 validation error detected: Value '99999' at 'memorySize' failed to satisfy constraint: Member must have value less than or equal to 10240",
		`"FunctionName":"f","EphemeralStorage":{"Size":10241},"Description":"` + strings.Repeat("é", 257) + `",` + role: "2 validation errors detected: Value '" +
			strings.Repeat("é", 257) + "' at 'description' failed to satisfy constraint: Member must have length less than or equal to 256; " +
			"Value '10241' at 'ephemeralStorage.size' failed to satisfy constraint: Member must have value less than or equal to 10240",
		`"Environment":{"Variables":{"1A":"secret"}},` + role: "2 validation errors detected: Value null at 'functionName' failed to satisfy constraint: Member must not be null; " +
			"Value at 'environment.variables' failed to satisfy constraint: Map keys must satisfy constraint: [Member must satisfy regular expression pattern: [a-zA-Z]([a-zA-Z0-9_])+]",
		`"FunctionName":"","Role":"arn:aws:iam::000000000000:role/r","Code":{}`: "2 validation errors detected: Value '' at 'functionName' failed to satisfy constraint: Member must have length greater than or equal to 1; " +
			"Value '' at 'functionName' failed to satisfy constraint: Member must satisfy regular expression pattern: " + functionName,
		`"FunctionName":"f","EphemeralStorage":{},` + role: "1 validation error detected: Value null at 'ephemeralStorage.size' failed to satisfy constraint: Member must not be null",
	} {
		_, err := ask[CreateFunctionRequest](t, "POST", functions, "{"+body+"}")
		refused(t, body, err, ValidationException, want)
	}
	_, err := ask[CreateFunctionRequest](t, "POST", functions, "")
	refused(t, "no body", err, ValidationException, "3 validation errors detected: Value null at 'code' failed to satisfy constraint: Member must not be null; "+
		"Value null at 'functionName' failed to satisfy constraint: Member must not be null; Value null at 'role' failed to satisfy constraint: Member must not be null")
}

func TestOtherRules(t *testing.T) {
	const weights = " at 'routingConfig.additionalVersionWeights' failed to satisfy constraint: "
	const weight = "Map value must satisfy constraint: [Member must have value less than or equal to 1.0, Member must have value greater than or equal to 0.0, Member must not be null]"
	for body, want := range map[string]string{
		`{"$LATEST":0.5}`: "'{$LATEST=0.5}'" + weights + "Map keys must satisfy constraint: [Member must have length less than or equal to 1024, " +
			"Member must have length greater than or equal to 1, Member must satisfy regular expression pattern: [0-9]+]",
		`{"2":-1}`:  "'{2=-1.0}'" + weights + weight,
		`{"2":2.0}`: "'{2=2.0}'" + weights + weight,
	} {
		_, err := ask[CreateAliasRequest](t, "POST", functions+"/f/aliases", `{"Name":"a","FunctionVersion":"1","RoutingConfig":{"AdditionalVersionWeights":`+body+`}}`)
		refused(t, body, err, ValidationException, "1 validation error detected: Value "+want)
	}
	_, err := ask[CreateAliasRequest](t, "POST", functions+"/f/aliases", `{"Name":"2024","FunctionVersion":"1"}`)
	refused(t, "a number as alias", err, ValidationException, "1 validation error detected: Value '2024' at 'name' failed to satisfy constraint: "+
		"Member must satisfy regular expression pattern: (?!^[0-9]+$)([a-zA-Z0-9-_]+)")
	_, err = ask[GetFunctionRequest](t, "GET", functions+"/f?Qualifier=invalid-qualifier-with-%3F-char", "")
	refused(t, "qualifier", err, ValidationException, "1 validation error detected: Value 'invalid-qualifier-with-?-char' at 'qualifier' failed to satisfy constraint: "+
		`Member must satisfy regular expression pattern: \$(LATEST(\.PUBLISHED)?)|[a-zA-Z0-9-_$]+`)
	_, err = ask[UntagResourceRequest](t, "DELETE", "/2017-03-31/tags/arn:aws:lambda:us-east-1:000000000000:function:f", "")
	refused(t, "no tag keys", err, ValidationException, "1 validation error detected: Value null at 'tagKeys' failed to satisfy constraint: Member must not be null")
	_, err = ask[PutProvisionedConcurrencyConfigRequest](t, "PUT", "/2019-09-30/functions/f/provisioned-concurrency?Qualifier=1", `{"ProvisionedConcurrentExecutions":0}`)
	refused(t, "nothing", err, ValidationException, "1 validation error detected: Value '0' at 'provisionedConcurrentExecutions' failed to satisfy constraint: "+
		"Member must have value greater than or equal to 1")
	_, err = ask[PutFunctionConcurrencyRequest](t, "PUT", "/2017-10-31/functions/f/concurrency", `{}`)
	refused(t, "not there is not 0", err, ValidationException, "1 validation error detected: Value null at 'reservedConcurrentExecutions' failed to satisfy constraint: Member must not be null")
	_, err = ask[ListFunctionsRequest](t, "GET", functions+"?FunctionVersion=invalid", "")
	refused(t, "enum", err, ValidationException, "1 validation error detected: Value 'invalid' at 'functionVersion' failed to satisfy constraint: Member must satisfy enum value set: [ALL]")
	_, err = ask[CreateFunctionUrlConfigRequest](t, "POST", "/2021-10-31/functions/f/url?Qualifier=2", `{"AuthType":"NONE","InvokeMode":"UNKNOWN"}`)
	refused(t, "url", err, ValidationException, "2 validation errors detected: Value 'UNKNOWN' at 'invokeMode' failed to satisfy constraint: "+
		"Member must satisfy enum value set: [RESPONSE_STREAM, BUFFERED]; Value '2' at 'qualifier' failed to satisfy constraint: "+
		`Member must satisfy regular expression pattern: ((?!^\d+$)^[0-9a-zA-Z-_]+$)`)
}

// Messages stay small, whatever is sent.
func TestLongMessages(t *testing.T) {
	many := strings.Repeat(`{"Arn":"x","LocalMountPath":"y"},`, 5000)
	_, err := ask[CreateFunctionRequest](t, "POST", functions, `{"FunctionName":"`+strings.Repeat("ä", 1e6)+`","FileSystemConfigs":[`+many+`{}],`+role+`}`)
	if err == nil || len(err.Error()) > 64<<10 || !strings.Contains(err.Error(), "10005 validation errors detected: ") {
		t.Errorf("%.200v", err)
	}
}

// Every pattern compiles, and every rule that another names is of a shape that may have one.
func TestRulesCompile(t *testing.T) {
	for name, r := range rules {
		if r.match != nil {
			r.match().MatchString("x")
		}
		if r.not != nil {
			r.not().MatchString("x")
		}
		if r.pattern != "" && r.match == nil {
			t.Error(name, " has no expression")
		}
	}
}
