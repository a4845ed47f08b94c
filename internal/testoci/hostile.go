package testoci

// Hostile gives what makes the sample function hostile, by what it does then: the
// value of "do" in its event. Each goes on until the invoke's time is over, or
// does so much harm at once that it is worth repeating.
func Hostile() map[string]string {
	return map[string]string{
		"forks without end":                       `{"forks":-1}`,
		"computes in many processes":              `{"forks":200,"cpu_ms":600000}`,
		"eats memory":                             `{"allocate_mb":100000}`,
		"floods its log":                          `{"log_lines":-1,"log_text":"a flood, a flood, a flood, a flood, a flood, a flood, a flood, a flood"}`,
		"fills /tmp":                              `{"write_mb":-1}`,
		"keeps connections to the API it runs on": `{"connections":900,"hold_ms":600000}`,
		"keeps connections to the Lambda API":     `{"connections":900,"connect_to":"thaw.internal:9000","hold_ms":600000}`,
		"calls the Runtime API out of order": `{"calls":["GET /2018-06-01/runtime/invocation/next","POST /2018-06-01/runtime/invocation/nobody/response {}",` +
			`"POST /2018-06-01/runtime/init/error {}","POST /2020-01-01/extension/register {}","DELETE /nothing"],"hold_ms":600000}`,
	}
}

// HostileInits is Hostile for the time before the first invoke, when no share of
// the processor bounds a function: values of FUNCTION_INIT_DO.
func HostileInits() map[string]string {
	return map[string]string{
		"computes in its init":       `{"cpu_ms":600000}`,
		"floods its log in its init": Hostile()["floods its log"],
	}
}
