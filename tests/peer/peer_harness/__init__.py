"""What PEFT's own test suite needs to run over our configuration, offline and unedited."""
